"""Random numbers that a validation uses up: later masks of dropout are the same in every run, or it is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import CertifiedTraining
from tests.trust import harness
from tests.trust.harness import Held, outcome, refused
from tests.trust.modules import FEATURES, Regressor, regression, variant


def network(self):
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))


def case(validation_step):
    """A regression with dropout that is validated between epochs."""
    made = regression(variant(Regressor, network=network, validation_step=validation_step, rate=0.1), FEATURES)
    rows = TensorDataset(made.data["x"], made.data["y"])
    return made.but(options={**made.options, "num_sanity_val_steps": 0}), DataLoader(rows, batch_size=4)


@pytest.fixture
def validated(monkeypatch):
    """Let all trainings of the harness be validated."""

    def judged(validation_step, judge):
        made, loader = case(validation_step)
        train = harness.L.Trainer.fit
        monkeypatch.setattr(harness.L.Trainer, "fit", lambda self, module, data: train(self, module, data, loader))
        return judge(made)

    return judged


def poisson(self, batch, batch_idx):
    torch.poisson(10 * self.net(batch[0]).abs())


def until_it_is_enough(self, batch, batch_idx):
    total = 0.0
    while total < float(self.net(batch[0]).abs().sum()):
        total += float(torch.rand(())) / 4


def for_some_batches(self, batch, batch_idx):
    if batch_idx == 1:  # as a prediction could decide
        torch.rand(1)


def noise(self, batch, batch_idx):
    x, y = batch
    self.log("noisy", F.mse_loss(self.net(x + torch.randn_like(x)), y).item())


def apart(self, batch, batch_idx):
    with torch.random.fork_rng():
        poisson(self, batch, batch_idx)


@pytest.mark.thinned(1)
@pytest.mark.parametrize(
    ("validation_step", "reason"),
    [
        (poisson, "`aten.poisson`, which draws as many"),
        (until_it_is_enough, "other random numbers for one batch"),
        (for_some_batches, "other random numbers for one batch"),
    ],
)
def test_numbers_that_predictions_decide_are_refused(validation_step, reason, validated):
    validated(validation_step, lambda made: refused(made, reason, late=True))


@pytest.mark.parametrize("validation_step", [noise, apart])
def test_as_many_numbers_in_every_run_hold(validation_step, validated):
    result = validated(validation_step, outcome)
    assert isinstance(result, Held), result.error
    assert result.outside <= 0


def test_without_the_check_a_run_is_outside(monkeypatch, validated):
    """Planted: nothing watches what validations draw."""
    monkeypatch.setattr("agt_lightning.lightning.validation_draws.rejects", lambda *_: False)
    monkeypatch.setattr("agt_lightning.lightning.validation_draws.draws", lambda *_: False)
    result = validated(poisson, outcome)
    assert isinstance(result, Held)
    assert result.outside > 0


def test_a_run_that_stops_leaves_no_mode_behind():
    def fails(self, batch, batch_idx):
        raise RuntimeError("of the validation")

    certified = CertifiedTraining(FEATURES)
    made, loader = case(fails)
    trainer = harness.L.Trainer(callbacks=[certified], num_sanity_val_steps=0, **harness.QUIET)
    with pytest.raises(RuntimeError, match="of the validation"):
        trainer.fit(harness.made(made), loader, loader)
    assert _get_current_dispatch_mode() is None
