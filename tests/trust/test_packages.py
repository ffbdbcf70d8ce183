"""Trainings by `pytorch_lightning`, whose classes are other ones than those of `lightning`, under attack."""

import pytest
import torch
from torch import nn

from agt_lightning import CertifiedTraining
from tests.trust.harness import (
    QUIET,
    Batches,
    Case,
    held,
    made,
    measured,
    parameters,
    plain,
    poisoned_runs,
    refused,
    train,
)
from tests.trust.modules import FEATURES, FLIPS, LABELS, apart, classes, numbers

pl = pytest.importorskip("pytorch_lightning")
callbacks = pl.callbacks


class Regressor(pl.LightningModule):
    outputs = 1
    bias = True

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, self.outputs, bias=self.bias).double()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Classifier(Regressor):
    outputs = 3

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)


class Scheduled(Regressor):
    """The epoch sets a threshold that clean residuals do not reach."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.huber_loss(self(x), y, delta=1.0 if self.current_epoch == 0 else 10.0)


class Annealed(Regressor):
    def on_train_epoch_start(self):
        self.weight = 1.0 + self.trainer.current_epoch

    def training_step(self, batch, batch_idx):
        return self.weight * super().training_step(batch, batch_idx)


def training(module=Regressor, adversary=LABELS, **changes) -> Case:
    rows = classes() if issubclass(module, Classifier) else numbers()
    return Case(module, adversary, rows, trainer=pl.Trainer).but(**changes)


HELD = {
    "moved labels": training(),
    "moved features": training(adversary=FEATURES),
    "flips": training(Classifier, FLIPS),
    "clipped by value": training(options={"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}),
    "clipped by norm": training(options={"gradient_clip_val": 0.05}),
    "in double precision": training(options={"precision": "64-true"}),
    "epoch in the step": training(Scheduled),
    "epoch in a hook": training(Annealed),
}


@pytest.mark.parametrize("case", HELD.values(), ids=HELD)
def test_poisoned_runs_are_inside(case):
    held(case)


def test_a_resumed_training_goes_on_from_its_bounds(tmp_path):
    """Bounds that start at the checkpoint would miss what the adversary did before."""
    case, path = training(options={"max_epochs": 4}), tmp_path / "half.ckpt"
    batches = Batches(case)
    half = train(case.but(options={"max_epochs": 2}), made(case), batches, CertifiedTraining(LABELS))
    half.save_checkpoint(path)
    second, module = CertifiedTraining(LABELS), made(case)
    pl.Trainer(callbacks=[second], **QUIET | case.options).fit(module, batches, ckpt_path=path)
    found = measured(second.bounds, plain(case), [parameters(module), *poisoned_runs(case)])
    assert found["outside"] == 0
    assert found["reach"] > 0.03


class Stopping(pl.Callback):
    """Stops through the inner loop, above a loss that clean data do not reach."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if outputs["loss"] > 5:
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step


class ClipsAlone(Regressor):
    def on_after_backward(self):
        if self.net.weight.grad.norm() > 5:
            self.net.weight.grad.mul_(0.1)


class Remembers(Regressor):
    scale = 1.0

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx) * self.scale
        self.scale = 1.0 + float(batch[1].abs().max() > 2)
        return loss


REFUSED = {
    "stops by the loss": (apart(training(before=lambda: [Stopping()])), "stop"),
    "clips above a norm": (apart(training(ClipsAlone)), "on_after_backward"),
    "remembers the last batch": (training(Remembers), "data|scale"),
}


@pytest.mark.parametrize(("case", "reason"), REFUSED.values(), ids=REFUSED)
def test_code_that_acts_on_poisoned_data_alone_is_refused(case, reason):
    refused(case, reason)
