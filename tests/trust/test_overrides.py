"""Overrides beside the hooks: on the object, in what clips gradients, in strategies and loops."""

import types

import lightning as L
import pytest
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from tests.trust.harness import refused
from tests.trust.modules import Regressor, apart, regression

LARGE = 4.0
"""A norm that gradients of clean data do not reach, and those of poisoned data do."""


def long(module) -> bool:
    return bool(nn.utils.get_total_norm([parameter.grad for parameter in module.parameters()]) > LARGE)


def shorten(module) -> None:
    if long(module):
        for parameter in module.parameters():
            parameter.grad.mul_(0.1)


class Clips(Regressor):
    def clip_gradients(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        shorten(self)


class Configures(Regressor):
    def __init__(self):
        super().__init__()

        def clip(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            shorten(self)

        self.configure_gradient_clipping = types.MethodType(clip, self)


class Steps(SingleDeviceStrategy):
    def optimizer_step(self, optimizer, closure, model=None, **kwargs):
        def shortened():
            loss = closure()
            shorten(self.lightning_module)
            return loss

        return super().optimizer_step(optimizer, shortened, model, **kwargs)


class AfterBackward(SingleDeviceStrategy):
    def post_backward(self, closure_loss):
        shorten(self.lightning_module)


class OwnLoop(_TrainingEpochLoop):
    def advance(self, data_fetcher):
        super().advance(data_fetcher)
        if long(self.trainer.lightning_module):
            self.trainer.should_stop = True


def replace_loop(trainer) -> None:
    trainer.fit_loop.epoch_loop.__class__ = OwnLoop


class Replaces(Regressor):
    def setup(self, stage):
        replace_loop(self.trainer)


def by(strategy):
    """Make Trainers with a strategy of their own."""
    return lambda **options: L.Trainer(strategy=strategy("cpu"), **options)


CASES = {
    "clips": (regression(Clips), "`clip_gradients` is overridden"),
    "on the object": (regression(Configures), "`configure_gradient_clipping` is overridden"),
    "strategy that steps": (regression(trainer=by(Steps)), "`Steps.optimizer_step` is overridden"),
    "strategy after the gradient": (regression(trainer=by(AfterBackward)), "`AfterBackward.post_backward` is overrid"),
    "loop": (regression(Replaces), "`OwnLoop` is not Lightning's"),
}


@pytest.mark.parametrize(("case", "reason"), CASES.values(), ids=CASES)
def test_what_acts_on_large_gradients_alone(case, reason):
    """Accepted, a poisoned run would leave the bounds."""
    refused(apart(case), reason)
