"""Random numbers that a training step draws: the same in every run, whatever the data are."""

import pytest
import torch
import torch.nn.functional as F

from agt_lightning import BoundedAdversary
from agt_lightning.capture import dropout
from agt_lightning.engine import engine
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from tests.trust.harness import held, outcome, refused
from tests.trust.modules import FEATURES, Regressor, regression, variant


def step(function, **members) -> type:
    return variant(Regressor, training_step=lambda self, batch, batch_idx: function(self, *batch), **members)


def noisy(self, x, y):
    return F.mse_loss(self(x + 0.3 * torch.randn_like(x)), y)


def masked(self, x, y):
    kept = (torch.rand(x.shape, dtype=x.dtype) < 0.6).to(x)
    return F.mse_loss(self(x * kept), y)


def one_for_all(self, x, y):
    return F.mse_loss(self(x * (1 + 0.1 * torch.randn(1, 3, dtype=x.dtype))), y)


def distribution(self, x, y):
    z = torch.distributions.Normal(self(x), torch.ones_like(y)).rsample()
    return F.mse_loss(z, y)


def then_dropout(self, x, y):
    return F.mse_loss(self(F.dropout(x + torch.randn_like(x), 0.3)), y)


STEPS = [noisy, masked, one_for_all, distribution, then_dropout]


@pytest.mark.parametrize("function", STEPS)
@pytest.mark.parametrize("adversary", [FEATURES, BoundedAdversary(n=1, nu=1.0)], ids=["features", "labels"])
def test_numbers_of_a_fixed_distribution_hold(function, adversary):
    held(regression(step(function, hidden=4, rate=0.02), adversary), reach=0.01)


def logs_others(self, x, y):
    self.log("sample", torch.randn(3).mean())
    return noisy(self, x, y)


def test_other_draws_are_refused():
    """It is not known which numbers the loss has got."""
    refused(regression(step(logs_others), FEATURES), "draws random numbers besides those", late=True)


def scaled(self, x, y):
    return F.mse_loss(self(torch.normal(x, 0.1)), y)


def test_distributions_that_depend_on_data_are_refused():
    refused(regression(step(scaled), FEATURES), "draws random numbers")


@pytest.fixture
def _other_numbers(monkeypatch):
    drawn = dropout._numbers
    monkeypatch.setattr(dropout, "_numbers", lambda *given: drawn(*given).flip(0))


@pytest.mark.usefixtures("_other_numbers")
def test_planted_other_numbers_are_noticed_before_the_first_step():
    result = outcome(regression(step(noisy), FEATURES))
    assert isinstance(result.error, UncertifiableError)
    assert "different gradients" in str(result.error)


@pytest.mark.usefixtures("_other_numbers")
def test_planted_other_numbers_are_noticed_in_the_first_step(monkeypatch):
    """The gradient of training is compared with that of the numbers that were drawn again."""
    monkeypatch.setattr(engine, "step_problems", lambda *_: [])
    result = outcome(regression(step(noisy), FEATURES))
    assert isinstance(result.error, UnsoundBoundError)
