"""Batch normalization in training mode under a Trainer: running statistics from the first step to the certificate."""

import pytest
import torch
from lightning import Callback
from torch import nn
from torch.nn import functional as F

from agt_lightning import BoundedAdversary, CertifiedTraining, UncertifiableError, UnsoundBoundError
from agt_lightning.errors import BoundsMismatchError

MOVED = BoundedAdversary(n=1, epsilon=0.001)


@pytest.fixture
def normalized(regressor):
    """Return a module whose network is normalized by statistics of the batch, with members of its own."""

    def make(**members):
        torch.manual_seed(0)
        module = type("Normalized", (regressor,), members)(rate=0.01)
        module.net.insert(1, nn.BatchNorm1d(5))
        return module

    return make


@pytest.mark.slow
def test_a_resumed_training_has_the_bounds_of_one_without_a_break(normalized, loader, fit, tmp_path):
    whole = CertifiedTraining(MOVED)
    fit.trainer(whole, max_epochs=2).fit(normalized(), loader())
    first = fit.trainer(CertifiedTraining(MOVED))
    first.fit(normalized(), loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    second = CertifiedTraining(MOVED)
    fit.trainer(second, max_epochs=2).fit(normalized(), loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for name, bounds in whole.bounds.running.items():
        assert torch.equal(bounds.upper, second.bounds.running[name].upper)
    assert second.certified_model().bound_forward(torch.zeros(2, 3)).width.max() > 0


@pytest.mark.slow
def test_parameters_of_the_start_with_statistics_of_an_earlier_training(normalized, loader, fit):
    module, start = normalized(), normalized()
    fit.trainer(CertifiedTraining(MOVED)).fit(module, loader())
    with torch.no_grad():
        for name, parameter in start.named_parameters():
            module.get_parameter(name).copy_(parameter)
    with pytest.raises(BoundsMismatchError, match=r"running_mean.*reset_running_stats\(\)"):
        fit.trainer(CertifiedTraining(MOVED)).fit(module, loader())
    module.net[1].reset_running_stats()
    fit.trainer(CertifiedTraining(MOVED)).fit(module, loader())


class Again(Callback):
    """A forward pass in training mode beside the steps."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        module(torch.ones(4, 3) + torch.arange(4)[:, None])


def test_a_pass_beside_the_steps_is_noticed(normalized, loader, fit):
    with pytest.raises(UnsoundBoundError, match="running_mean"):
        fit.trainer(CertifiedTraining(MOVED), Again()).fit(normalized(), loader())


def test_a_momentum_that_is_none_is_named(normalized, loader, fit):
    module = normalized()
    module.net[1].momentum = None
    with pytest.raises(UncertifiableError, match=r"`net.1` has `momentum=None`.*Give it a number"):
        fit.trainer(CertifiedTraining(MOVED)).fit(module, loader())


@pytest.mark.slow
def test_validation_has_statistics_within_bounds(normalized, loader, fit):
    trainer = fit.trainer(CertifiedTraining(MOVED))
    module = normalized(validation_step=lambda self, batch, batch_idx: F.mse_loss(self(batch[0]), batch[1]))
    trainer.fit(module, loader(), loader())
    nominal, certified = (float(trainer.callback_metrics[f"agt/val_{name}_mse"]) for name in ("nominal", "certified"))
    assert 0 < nominal < certified < 2 * nominal


class EndsEarly(Callback):
    """The end of a training in the middle of its first step, without an error."""

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = True


@pytest.mark.slow
def test_what_a_training_without_a_step_has_moved_is_no_start(normalized, loader, fit):
    """Its forward passes read data that can be poisoned, so the next training would begin elsewhere."""
    module = normalized()
    fit.trainer(CertifiedTraining(MOVED), EndsEarly(), accumulate_grad_batches=3).fit(module, loader())
    assert module.net[1].running_mean.any()
    with pytest.raises(UnsoundBoundError, match=r"running_mean.*before the first step.*reset_running_stats\(\)"):
        fit.trainer(CertifiedTraining(MOVED)).fit(module, loader())
    module.net[1].reset_running_stats()
    fit.trainer(CertifiedTraining(MOVED)).fit(module, loader())


@pytest.mark.slow
def test_statistics_of_what_no_loss_reads_have_no_bounds_in_a_checkpoint_either(normalized, loader, fit, tmp_path):
    """A layer that runs beside the loss moves its buffers without bounds, and `forward` reads them in `eval` mode."""

    def step(self, batch, batch_idx):
        self.beside(batch[0])
        return F.mse_loss(self.net(batch[0]), batch[1])

    def make():
        module = normalized(training_step=step, forward=lambda self, x: self.net(self.beside(x)))
        module.beside = nn.BatchNorm1d(3)
        return module

    trainer = fit.trainer(CertifiedTraining(MOVED))
    trainer.fit(make(), loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = make()
    other.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"])
    model = CertifiedTraining(MOVED).certified_model_at(tmp_path / "last.ckpt", other)
    with pytest.raises(UncertifiableError, match=r"beside.running_mean` changed during training"):
        model.bound_forward(torch.zeros(2, 3))
