"""Overrides beside the hooks: on the object, in what clips gradients, in strategies and loops."""

import functools
import types

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from tests.trust.harness import held, refused
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


def weaken(backward):
    """Return a backward pass that scales large losses down, under the name and module of the one that it wraps."""

    @functools.wraps(backward)
    def weakened(loss, *args, **kwargs):
        return backward(0.1 * loss if loss.detach() > LARGE else loss, *args, **kwargs)

    return weakened


class Wraps(Regressor):
    @functools.wraps(L.LightningModule.configure_gradient_clipping)
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        shorten(self)


class WrapsOnObject(Regressor):
    def __init__(self):
        super().__init__()
        self.backward = weaken(self.backward)


class Shortening:
    def __call__(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        shorten(nn.ParameterList(optimizer.param_groups[0]["params"]))


class HoldsObject(Regressor):
    configure_gradient_clipping = Shortening()


class Partial(Regressor):
    def shorten_all(self, optimizer, *, limit, gradient_clip_val=None, gradient_clip_algorithm=None):
        shorten(self)

    configure_gradient_clipping = functools.partialmethod(shorten_all, limit=LARGE)


class PatchesPlugin(Regressor):
    def setup(self, stage):
        plugin = self.trainer.strategy.precision_plugin
        plugin.backward = weaken(plugin.backward)


class PatchesLoop(Regressor):
    def setup(self, stage):
        loop = self.trainer.fit_loop.epoch_loop.automatic_optimization
        make = loop._make_backward_fn
        loop._make_backward_fn = lambda optimizer: weaken(make(optimizer))


class WrappingStrategy(SingleDeviceStrategy):
    @functools.wraps(SingleDeviceStrategy.backward)
    def backward(self, loss, *args, **kwargs):
        return super().backward(0.1 * loss if loss.detach() > LARGE else loss, *args, **kwargs)


def by(strategy):
    """Make Trainers with a strategy of their own."""
    return lambda **options: L.Trainer(strategy=strategy("cpu"), **options)


CASES = {
    "clips": (regression(Clips), "`clip_gradients` is overridden"),
    "on the object": (regression(Configures), "`configure_gradient_clipping` is overridden"),
    "strategy that steps": (regression(trainer=by(Steps)), "`Steps.optimizer_step` is overridden"),
    "strategy after the gradient": (regression(trainer=by(AfterBackward)), "`AfterBackward.post_backward` is overrid"),
    "wrapped": (regression(Wraps), "`configure_gradient_clipping` is overridden"),
    "wrapped on the object": (regression(WrapsOnObject), "`backward` is overridden"),
    "callable object": (regression(HoldsObject), "`configure_gradient_clipping` is overridden"),
    "partial method": (regression(Partial), "`configure_gradient_clipping` is overridden"),
    "patched plugin": (regression(PatchesPlugin), "precision plugin `Precision`"),
    "patched loop": (regression(PatchesLoop), "`_AutomaticOptimization` is not Lightning's"),
    "wrapping strategy": (regression(trainer=by(WrappingStrategy)), "`WrappingStrategy.backward` is overridden"),
    "loop": (regression(Replaces), "`OwnLoop` is not Lightning's"),
}


@pytest.mark.parametrize(("case", "reason"), CASES.values(), ids=CASES)
def test_what_acts_on_large_gradients_alone(case, reason):
    """Accepted, a poisoned run would leave the bounds."""
    refused(apart(case), reason)


# --- hooks ------------------------------------------------------------------------------------------------------------


class ScalesBatch(L.Callback):
    """The largest label of the batch is a statistic; no clean one exceeds the limit."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        batch[1].div_(batch[1].abs().max().clamp(min=1.0))


class Decided(Regressor):
    """A second layer that starts from zero, which hooks freeze once a loss is large."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Parameter(torch.zeros(3, 1, dtype=torch.float64))

    def forward(self, x):
        return self.net(x) + x @ self.extra

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss


class FreezesByMetric(Decided):
    def on_train_epoch_end(self):
        self.extra.requires_grad_(bool(self.trainer.callback_metrics["loss"] < LARGE))


class FreezesByLoss(L.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        module.extra.requires_grad_(bool(outputs["loss"] < LARGE))


class FineTunes(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        pass

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch and pl_module.trainer.callback_metrics["loss"] > LARGE:
            pl_module.extra.requires_grad_(False)


HOOKS = {
    "statistic of the batch": (regression(before=lambda: [ScalesBatch()]), "statistic of all its samples"),
    "frozen by a metric": (regression(FreezesByMetric), "chooses the learning rate, what is trained"),
    "frozen by a loss": (
        regression(Decided, before=lambda: [FreezesByLoss()]),
        "chooses the learning rate, what is tr",
    ),
    "fine tuning": (regression(Decided, before=lambda: [FineTunes()]), "chooses the learning rate, what is trained"),
}


@pytest.mark.parametrize(("case", "reason"), HOOKS.values(), ids=HOOKS)
def test_hooks_that_data_steer(case, reason):
    """Accepted, a poisoned run would leave the bounds."""
    refused(apart(case), reason)


def test_a_hook_that_changes_each_sample_by_itself_is_certified():
    class Halves(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            batch[1].mul_(0.5)

    held(apart(regression(before=lambda: [Halves()])))
