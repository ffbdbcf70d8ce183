"""Code under `no_grad` or `detach` beside calls in place, which recording turns into calls that make new values."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.trust.harness import held, refused
from tests.trust.modules import FEATURES, Regressor, numbers, regression, variant

INSIDE = 0.05
"""A move of the first feature of the first sample, half way to the border of its ball."""

SPOT = float(numbers()["x"][0, 0]) + INSIDE


class TwoLayers(Regressor):
    hidden, rate = 4, 0.02

    def __init__(self):
        super().__init__()
        self.second = nn.Linear(3, 1).double()


class InPlace(TwoLayers):
    def network(self):
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))


def case(step, base=TwoLayers, **changes):
    module = variant(base, training_step=lambda self, batch, batch_idx: step(self, *batch))
    return regression(module, FEATURES, **changes)


def through_detach(self, x, y):
    """The second layer has a gradient at one spot alone, which no corner of the ball and no clean batch shows."""
    values = self.second(x)
    values.detach().mul_(2.0)
    near = (0.02 - (x[:, :1] - SPOT).abs()).relu()
    return F.mse_loss(self(x), y) + 30 * (near * values).mean()


def on_the_spot(epoch, index, rows):
    rows["x"][0, 0] += INSIDE if index == 0 else 0.0
    return rows


def of_lengths(self, x, y):
    hidden = self.net[0](x)
    length = hidden.norm(dim=1, keepdim=True).clone()
    with torch.no_grad():
        length.clamp_min_(1.0)
    return F.mse_loss(self.net[2](hidden / length), y)


def of_a_view(self, x, y):
    hidden = self.net[0](x)
    with torch.no_grad():
        column = hidden[:, 0]
    with torch.no_grad():
        column.mul_(2.0)
    return F.mse_loss(self.net[2](hidden), y)


@pytest.mark.parametrize("step", [through_detach, of_lengths, of_a_view])
def test_a_change_that_autograd_does_not_see_is_refused(step):
    refused(case(step, attacks=[on_the_spot]), "changes a value in place where autograd does not see it")


def distilled(self, x, y):
    with torch.no_grad():
        target = self(x)
    return F.mse_loss(self(2 * x), target) + F.mse_loss(self(x), y)


def clamped_target(self, x, y):
    target = self(x).detach().clamp_(0, 1)
    return F.mse_loss(self(2 * x), target) + F.mse_loss(self(x), y)


@pytest.mark.parametrize("step", [distilled, clamped_target])
def test_what_has_no_gradient_beside_calls_in_place_holds(step):
    """A network in training reads its own parameters with and without a gradient."""
    held(case(step, InPlace))


def with_a_new_value(self, x, y):
    hidden = self.net[0](x)
    length = hidden.norm(dim=1, keepdim=True)
    length = length + (length.clamp(min=1.0) - length).detach()
    return F.mse_loss(self.net[2]((hidden / length).relu_()), y)


def test_the_way_out_holds():
    held(case(with_a_new_value))
