"""Branches on data: harmless if both sides give the same loss or one of them ends the run, and refused otherwise.

Assertions are those of Python itself, as in training: PYTEST_DONT_REWRITE.
"""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
import torchmetrics.functional as metrics

from tests.trust.harness import Case, held, refused
from tests.trust.modules import Classifier, Regressor, apart, classification, regression, variant

SEEN: list[str] = []
SPIKE = 3.0
"""A label beyond this is poisoned: clean ones stay below 1."""


def step(function, base: type = Regressor, **members) -> type:
    def training_step(self, batch, batch_idx):
        return function(self, *batch)

    return variant(base, training_step=training_step, **members)


def mse(self, x, y):
    return F.mse_loss(self(x), y)


def by_name(functions):
    return {"argvalues": functions, "ids": [function.__name__ for function in functions]}


# --- harmless --------------------------------------------------------------------------------------------------------


def asserts(self, x, y):
    assert y.abs().max() < 100, "not scaled"
    assert not torch.isnan(x).any()
    assert (self.net.weight.abs() < 1e6).all()
    return mse(self, x, y)


def raises_and_catches_other_errors(self, x, y):
    with contextlib.suppress(KeyError):
        if (y > 100).any().item():
            raise ValueError("not scaled")
    return mse(self, x, y)


def logs_by_a_mask(self, x, y):
    out = self(x)
    if (y > 0).sum() > 0:
        self.log("positive", out[y > 0].mean())
    if out[y > 0.1].shape[0] > 1:
        self.log("large", out[y > 0.1].std())
    return F.mse_loss(out, y)


def counts_for_a_log(self, x, y):
    if y.abs().max() > SPIKE:
        self.spikes = getattr(self, "spikes", 0) + 1
    return mse(self, x, y)


def logs_by_numpy(self, x, y):
    out = self(x).detach().numpy()
    self.log("spread", float(np.abs(out - y.numpy()).max()))
    if out.mean() > 0 and np.median(out) > 0:
        self.log("positive", 1.0)
    return mse(self, x, y)


HARMLESS = [asserts, raises_and_catches_other_errors, logs_by_a_mask, counts_for_a_log, logs_by_numpy]


@pytest.mark.parametrize("function", **by_name(HARMLESS))
def test_branches_that_leave_the_loss_alone_are_certified(function):
    held(regression(step(function)))


def functional_metrics(self, x, y):
    out = self(x)
    self.log("accuracy", metrics.accuracy(out.argmax(1), y, task="multiclass", num_classes=3))
    return F.cross_entropy(out, y)


class Collected(Classifier):
    """A collection of metrics that the step walks along."""

    def __init__(self):
        super().__init__()
        kinds = {"accuracy": torchmetrics.classification.MulticlassAccuracy(3)}
        self.metrics = torchmetrics.MetricCollection(kinds, prefix="train_")

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        self.metrics.update(out, y)
        if len(self.metrics) > 0 and "accuracy" in self.metrics and list(self.metrics) == list(self.metrics.keys()):
            self.log_dict({name: metric.compute() for name, metric in self.metrics.items()})
        return F.cross_entropy(out, y)


@pytest.mark.parametrize("module", [step(functional_metrics, Classifier), Collected], ids=["functional", "collection"])
def test_metrics_beside_the_loss_are_certified(module):
    held(classification(module))


# --- looks harmless, and is not --------------------------------------------------------------------------------------


def swallows_its_assertion(self, x, y):
    scale = 1.0
    try:
        assert y.abs().max() < SPIKE
    except AssertionError:
        scale = 0.1
    return scale * mse(self, x, y)


def counts_two_branches(self, x, y):
    """Each branch alone leaves the loss as it is."""
    large, small = bool((y > SPIKE).any()), bool((y < SPIKE).all())
    return mse(self, x, y) * (0.1 if large and not small else 1.0)


def weighs_by_an_item(self, x, y):
    return mse(self, x, y) * min(1.0, SPIKE / y.abs().max().item())


def takes_a_round_trip(self, x, y):
    return (self(x) - y).square().mean() * torch.from_numpy(
        np.minimum(1.0, SPIKE / abs(y.numpy()).max(keepdims=True))
    ).mean()


def takes_a_sorted_list(self, x, y):
    return mse(self, x, y) * (0.1 if sorted(y.flatten().tolist())[-1] > SPIKE else 1.0)


def skips_batches(self, x, y):
    loss = mse(self, x, y)
    return None if y.abs().max() > SPIKE else loss


def ends_the_epoch(self, x, y):
    if y.abs().max() > SPIKE:
        raise StopIteration
    return mse(self, x, y)


def checks_a_part_for_nan(self, x, y):
    return mse(self, x, y) * (0.1 if torch.isnan((SPIKE - y).log()).any() else 1.0)


def catches_a_refused_metric(self, x, y):
    scale = 1.0
    try:
        metrics.accuracy((y.abs() > SPIKE).long().flatten() * 7, (y > 9).long().flatten(), "multiclass", num_classes=3)
    except RuntimeError:
        scale = 0.1
    return scale * mse(self, x, y)


def remembers_a_branch(self, x, y):
    loss = mse(self, x, y) * getattr(self, "scale", 1.0)
    if y.abs().max() > SPIKE:
        self.scale = 0.1
    return loss


def remembers_a_plain_branch(self, x, y):
    loss = mse(self, x, y) * (0.1 if getattr(self, "spikes", 0) else 1.0)
    if float(y.abs().max()) > SPIKE:
        self.spikes = 1
    return loss


def remembers_in_a_list(self, x, y):
    self.seen = getattr(self, "seen", [])
    loss = mse(self, x, y) * (0.1 if self.seen else 1.0)
    if y.abs().max() > SPIKE:
        self.seen.append("spike")
    return loss


def remembers_in_a_global(self, x, y):
    loss = mse(self, x, y) * (0.1 if SEEN else 1.0)
    if y.abs().max() > SPIKE:
        SEEN.append("spike")
    return loss


def stops_the_training(self, x, y):
    if y.abs().max() > SPIKE:
        self.trainer.should_stop = True
    return mse(self, x, y)


HARMFUL = [
    *(remembers_in_a_global, stops_the_training),
    *(remembers_a_branch, remembers_a_plain_branch, remembers_in_a_list),
    *(swallows_its_assertion, counts_two_branches, weighs_by_an_item, takes_a_round_trip, takes_a_sorted_list),
    *(skips_batches, ends_the_epoch, checks_a_part_for_nan, catches_a_refused_metric),
]


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


def case(function) -> Case:
    """Only the first sample can be poisoned, and its gradient is apart: what else moves is outside of the bounds."""
    return apart(regression(step(function)))


@pytest.mark.parametrize("function", **by_name(HARMFUL))
def test_branches_that_reach_the_loss_are_refused(function):
    refused(
        case(function),
        r"lets Python read data|numbers that Python reads|np.ndarray|what data decide|sets `trainer.should_stop`",
    )


def test_a_buffer_that_a_branch_writes_is_refused():
    class Buffered(Regressor):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones((), dtype=torch.float64))

        def training_step(self, batch, batch_idx):
            loss = F.mse_loss(self.scale * self(batch[0]), batch[1])
            with torch.no_grad():
                self.scale.copy_(torch.where(batch[1].abs().max() > SPIKE, 0.1, self.scale))
            return loss

    refused(apart(regression(Buffered)), "changes it in place")


def test_a_metric_in_the_loss_is_refused():
    class Weighed(Regressor):
        def __init__(self):
            super().__init__()
            self.error = torchmetrics.MeanSquaredError()

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            return loss / (1 + self.error(self(batch[0]), batch[1]))

    refused(apart(regression(Weighed)), "value of a metric")


def test_an_error_that_the_optimizer_step_catches_is_refused():
    def function(self, x, y):
        if y.abs().max() > SPIKE:
            raise ValueError("a spike")
        return mse(self, x, y)

    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        with contextlib.suppress(ValueError):
            optimizer.step(closure=closure)

    refused(apart(regression(step(function, optimizer_step=optimizer_step))), "`optimizer_step`.*may catch it")
