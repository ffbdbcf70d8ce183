"""The tolerance of a sum of gradients, with and without the pass over all of them."""

import math

import pytest
import torch
from torch import nn

from agt_lightning.adversaries import BoundedAdversary
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.self_checks import Tolerance
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval


def never():
    """The sum of sizes, where the gradients' sum must decide."""
    raise AssertionError("asked for the sum of sizes")


@pytest.mark.parametrize(
    ("error", "covered"), [(0.0, True), (0.25, True), (0.5, True), (0.51, False), (math.nan, False)]
)
def test_an_error_is_covered_up_to_the_rounding_of_all_sizes(error, covered):
    tolerance = Tolerance(0.25, lambda: 2.0)
    assert tolerance.covers(torch.tensor([0.0, error]), torch.tensor([1.0, 0.5])) is covered


def test_small_errors_need_no_pass_over_the_gradients():
    tolerance = Tolerance(0.25, never)
    assert tolerance.covers(torch.tensor([0.1, 0.25]), torch.tensor([-1.0, 0.5]))
    with pytest.raises(AssertionError, match="asked"):
        tolerance.covers(torch.tensor([0.1, 0.26]), torch.tensor([-1.0, 0.5]))


def test_a_sum_that_cancels_is_compared_with_the_sizes():
    assert Tolerance(1e-16, lambda: 1e6).covers(torch.tensor([1e-11]), torch.tensor([1e-12]))


def test_a_sum_that_is_not_a_number_covers_nothing():
    assert not Tolerance(0.25, lambda: math.nan).covers(torch.tensor([0.1]), torch.tensor([math.nan]))


@pytest.fixture
def trained():
    """A module with a frozen layer after one certified step, and its engine."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    engine = AbstractGradientEngine(
        module,
        lambda module, batch: nn.functional.mse_loss(module(batch[0]), batch[1]),
        BoundedAdversary(n=1, epsilon=0.1),
    )
    optimizer = torch.optim.SGD(module[1].parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    engine.step([(torch.randn(4, 2), torch.randn(4, 1))], optimizer)
    return module, engine, optimizer


def test_a_module_outside_of_its_bounds_is_noticed_at_the_end(trained):
    module, engine, _ = trained
    engine.require_contained()
    weight = module[0].weight.detach().double()
    engine.domains.in_use["box"].intervals["0.weight"] = Interval.point(weight + 1e-3)
    with pytest.raises(UnsoundBoundError, match=r"0\.weight"):
        engine.require_contained()


def test_parameters_without_gradient_stay_in_a_step(trained):
    module, engine, optimizer = trained
    batch = (torch.randn(4, 2), torch.randn(4, 1))
    optimizer.register_step_post_hook(lambda *_: module[0].weight.data.add_(1e-3))
    with pytest.raises(UnsoundBoundError, match=r"`0\.weight` to stay"):
        engine.step([batch], optimizer)


def test_zero_gradients_move_parameters_by_momentum_and_decay(trained):
    module, engine, _ = trained
    before = module[1].weight.detach().clone()
    batch = (torch.zeros(4, 2), torch.zeros(4, 1))
    nn.init.zeros_(module[0].bias)
    engine = AbstractGradientEngine(module, engine.loss, BoundedAdversary(n=0))
    optimizer = torch.optim.SGD(module[1].parameters(), lr=0.1, weight_decay=0.1)
    engine.step([batch], optimizer)
    assert not torch.equal(module[1].weight, before)
    assert engine.bounds.contains(module)


def test_hooks_on_gradients_raise(trained):
    module, engine, optimizer = trained
    module[1].weight.register_hook(lambda gradient: gradient)
    with pytest.raises(UnsoundBoundError, match=r"`1\.weight` has one"):
        engine.step([(torch.randn(4, 2), torch.randn(4, 1))], optimizer)
