"""Random numbers that a training step draws: the same in every run, whatever the data are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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


def unused(function) -> type:
    """Dropout behind a call whose result nobody reads."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        with torch.no_grad():
            function(x)
        return F.mse_loss(self(x), y)

    def network(self):
        return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    return variant(Regressor, training_step=training_step, network=network)


REJECTING = {
    "gamma": lambda x: torch.distributions.Gamma(x.abs() + 0.1, torch.ones_like(x)).sample(),
    "beta": lambda x: torch.distributions.Beta(x.abs() + 0.1, torch.ones_like(x)).sample(),
    "binomial": lambda x: torch.binomial(torch.full_like(x, 9.0), x.sigmoid()),
    "poisson": lambda x: torch.poisson(5 * x.abs()),
    "rrelu": lambda x: F.rrelu(x, training=True),
}


@pytest.mark.parametrize("name", REJECTING)
def test_calls_that_draw_as_often_as_values_decide_are_refused(name):
    """They reject numbers, or draw for negative elements alone, so that a poisoned run finds other masks."""
    refused(regression(unused(REJECTING[name]), FEATURES), "draws as many random numbers as the values decide")


def test_a_call_that_can_draw_and_does_not_holds():
    held(regression(unused(lambda x: F.rrelu(x, training=False)), FEATURES), reach=0.01)


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
