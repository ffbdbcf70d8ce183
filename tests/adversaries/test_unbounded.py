import math

import pytest
import torch

from agt_lightning.adversaries import UnboundedAdversary
from agt_lightning.capture import LabelKind
from agt_lightning.interval import Interval

WRONG = {
    "n is a bool": ({"n": False}, TypeError, r"Expected `n` to be an integer, but got False \(bool\)"),
    "n is a float": ({"n": 2.0}, TypeError, "Expected `n` to be an integer, but got 2.0"),
    "n is negative": ({"n": -2}, ValueError, "Expected `n` to be at least 0, but got -2"),
    "kappa is zero": ({"kappa": 0}, ValueError, "Expected `kappa` to be finite and positive, but got 0"),
    "kappa is negative": ({"kappa": -1.0}, ValueError, "Expected `kappa` to be finite and positive, but got -1.0"),
    "kappa is NaN": ({"kappa": math.nan}, ValueError, "Expected `kappa` to be finite and positive, but got nan"),
    "kappa is infinite": ({"kappa": math.inf}, ValueError, "Expected `kappa` to be finite and positive, but got inf"),
    "kappa is a string": ({"kappa": "1"}, TypeError, r"Expected `kappa` to be a number, but got '1' \(str\)"),
    "kappa is a bool": ({"kappa": True}, TypeError, "Expected `kappa` to be a number, but got True"),
    "clip is unknown": ({"clip": "l2"}, ValueError, "Expected `clip` to be 'value' or 'norm', but got 'l2'"),
    "edits are unknown": ({"edits": "insert"}, ValueError, "Expected `edits` to be 'replace' or 'insert-delete'"),
    "clip is None": ({"clip": None}, ValueError, "Expected `clip` to be 'value' or 'norm', but got None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    arguments, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        UnboundedAdversary(**{"n": 1, "kappa": 0.5, **arguments})


@pytest.mark.parametrize("kind", list(LabelKind), ids=str)
def test_it_fits_every_objective(kind):
    assert UnboundedAdversary(n=3, kappa=1.0).problems(kind, 2, 0) == []


def test_it_moves_neither_features_nor_labels_by_themselves():
    adversary = UnboundedAdversary(n=3, kappa=1)
    features = Interval.point(torch.ones(2, 2))
    assert not adversary.perturbs_features
    assert not adversary.perturbs_labels
    assert adversary.poisoned_features(features) is features
    assert adversary.poisoned_labels(torch.ones(2), LabelKind.NUMBER).is_point
