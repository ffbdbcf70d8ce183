"""A collection must never take one certified metric for another: it would report the wrong certificate."""

import itertools

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from agt_lightning.metrics import (
    BackdoorAccuracy,
    CertifiedAccuracy,
    CertifiedCrossEntropy,
    CertifiedMSE,
    CertifiedRate,
    TargetedAttackSuccess,
)

SAFE_SETS = [None, [[0], [1]], [[0, 1], [1]], [[0], [0, 1]], [[0, 1], [0, 1]], [[], []]]


def every_metric() -> list:
    return [
        CertifiedAccuracy(),
        BackdoorAccuracy(),
        CertifiedRate(),
        CertifiedMSE(),
        CertifiedCrossEntropy(),
        *(TargetedAttackSuccess(safe) for safe in SAFE_SETS),
    ]


def agreeing_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Everything is certified, so that all rates of certification agree."""
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    return logits, logits + 1, torch.tensor([0, 1])


def telling_batch() -> tuple[Tensor, Tensor, Tensor]:
    """A constant wrong prediction and an open one, on which they differ."""
    lower = torch.tensor([[3.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
    return lower, lower + 1, torch.tensor([1, 0, 0])


def test_state_names_are_disjoint() -> None:
    for first, second in itertools.combinations(every_metric(), 2):
        assert not first._defaults.keys() & second._defaults.keys(), (first, second)


def test_metrics_that_agree_on_the_first_batch_stay_apart() -> None:
    singles = {
        "accuracy": CertifiedAccuracy(),
        "backdoor": BackdoorAccuracy(),
        "rate": CertifiedRate(),
        "loss": CertifiedCrossEntropy(),
        **{f"safe {number}": TargetedAttackSuccess(safe) for number, safe in enumerate(SAFE_SETS)},
    }
    collection = MetricCollection({name: metric.clone() for name, metric in singles.items()})
    for batch in (agreeing_batch(), telling_batch()):
        collection.update(*batch)
        for metric in singles.values():
            metric.update(*batch)
    assert len(collection.compute_groups) == len(singles)
    expected = {name: metric.compute() for name, metric in singles.items()}
    assert collection.compute() == expected
    assert expected["accuracy"] == pytest.approx(0.6)
    assert expected["rate"] == pytest.approx(0.8)


def test_safe_sets_written_differently_are_one_configuration() -> None:
    first, second = TargetedAttackSuccess([[1, 0, 1], (1,)]), TargetedAttackSuccess(((0, 1), [1]))
    assert first.safe_classes == second.safe_classes == ((0, 1), (1,))
    assert first._defaults.keys() == second._defaults.keys()


def test_one_collection_serves_keyword_updates() -> None:
    lower, upper, target = telling_batch()
    collection = MetricCollection([CertifiedAccuracy(), CertifiedRate(), TargetedAttackSuccess()])
    values = collection(lower=lower, upper=upper, target=target)
    assert {name: round(value.item(), 4) for name, value in values.items()} == {
        "CertifiedAccuracy": 0.3333,
        "CertifiedRate": 0.6667,
        "TargetedAttackSuccess": 0.6667,
    }
