"""Steps, ramps and knapsacks against brute force over all ways to share the movement."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from agt_lightning.domains.ball.unstable import largest_norm
from tests.domains.ball.problems import knapsack_bound, unstable_within

ROUNDING = 1e-9
"""Relative; far above float64 rounding of these sums."""


def noise(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


class Problem:
    """Distances with ties and zeros, and effects, of few samples and units."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.samples, self.units = 1 + seed % 4, 1 + seed % 3
        shape = (self.samples, self.units)
        self.distance = noise(generator, *shape) * 1.5
        if seed % 2:
            self.distance = (self.distance * 3).round() / 3  # ties, and zeros
        self.effect = noise(generator, *shape) * (noise(generator, *shape) < 0.8)
        self.possible = noise(generator, *shape) < (0.7 if seed % 5 == 0 else 2.0)
        self.radius = float(noise(generator) * 2)
        self.unstable = unstable_within(self.distance, self.radius, self.possible)
        self.values = self.effect[self.unstable.pairs.sample, self.unstable.pairs.unit]

    def shares(self) -> Tensor:
        """Radii of the units, (m, units), of at most the whole: corners at which pairs switch, and a grid."""
        options = []
        for unit in range(self.units):
            own = self.distance[:, unit][self.distance[:, unit] <= self.radius].tolist()
            grid = torch.linspace(0, self.radius, 12).double().tolist()
            options.append(sorted({0.0, *own, *grid}))
        every = torch.tensor(list(itertools.product(*options)), dtype=torch.float64)
        inside = every[every.square().sum(dim=1) <= self.radius**2 * (1 + 1e-12)]
        # The last unit gets what is left.
        rest = (self.radius**2 - inside[:, :-1].square().sum(dim=1)).clamp(min=0).sqrt()
        return torch.cat([inside, torch.cat([inside[:, :-1], rest[:, None]], dim=1)])

    def brute(self, ramps: bool) -> float:
        r = self.shares()[:, None]
        on = (self.distance <= r * (1 + 1e-12)) & self.possible
        factor = (r - self.distance).clamp(min=0) if ramps else torch.ones_like(r)
        return float((on * factor * self.effect).sum(dim=1).norm(dim=1).max())


@pytest.mark.parametrize("seed", range(24))
def test_sharing_is_bounded_by_duality(seed):
    pairs = Problem(seed)
    steps, ramps = (
        pairs.unstable.largest_steps(pairs.values, pairs.radius),
        pairs.unstable.largest_ramps(pairs.values, pairs.radius),
    )
    assert pairs.brute(ramps=False) <= steps * (1 + ROUNDING)
    assert pairs.brute(ramps=True) <= ramps * (1 + ROUNDING)


def test_sharing_is_nearly_attained():
    """Weak duality loses little: bounds are no more than half too large here, and exact for one unit."""
    steps, ramps = [], []
    for seed in range(40):
        pairs = Problem(seed)
        step, ramp = pairs.brute(ramps=False), pairs.brute(ramps=True)
        if step > 1e-3 and ramp > 1e-3:
            steps.append(pairs.unstable.largest_steps(pairs.values, pairs.radius) / step)
            ramps.append(pairs.unstable.largest_ramps(pairs.values, pairs.radius) / ramp)
    assert sorted(steps)[len(steps) // 2] < 1.2
    assert sorted(ramps)[len(ramps) // 2] < 1.3


@pytest.mark.parametrize("seed", range(10))
def test_cumulated_sums_within_each_unit(seed):
    pairs = Problem(seed)
    unstable = pairs.unstable
    total, slack = unstable.cumulated(pairs.values)
    for position in range(len(pairs.values)):
        same = (unstable.pairs.unit == unstable.pairs.unit[position]) & (
            torch.arange(len(unstable.pairs.unit)) <= position
        )
        exact = float(pairs.values[same].sum())
        assert abs(float(total[position]) - exact) <= float(slack) + 1e-15


def test_cumulated_after_a_large_unit_loses_only_its_slack():
    values = torch.tensor([1e8, 1e8, 1e-6, 1e-6]).double()
    unstable = unstable_within(torch.tensor([[0.1, 0.3], [0.2, 0.4]]).double(), 1.0)
    assert unstable.pairs.unit.tolist() == [0, 0, 1, 1]
    total, slack = unstable.cumulated(values)
    assert float((total - torch.tensor([1e8, 2e8, 1e-6, 2e-6]).double()).abs().max()) <= float(slack)


@pytest.mark.parametrize("seed", range(6))
def test_pairs_are_sorted_within_units(seed):
    pairs = Problem(seed)
    unstable = pairs.unstable
    assert bool((unstable.pairs.unit.diff() >= 0).all())
    inner = unstable.pairs.unit.diff() == 0
    assert bool((unstable.distance.diff()[inner] >= 0).all())
    expected = (pairs.distance <= pairs.radius) & pairs.possible
    found = torch.zeros_like(expected)
    found[unstable.pairs.sample, unstable.pairs.unit] = True
    assert torch.equal(found, expected)
    if len(unstable.pairs.unit):
        assert torch.equal(unstable.last[:-1], ~inner)
        assert bool(unstable.last[-1])


def test_without_pairs_nothing_happens():
    unstable = unstable_within(torch.tensor([[2.0, torch.inf]]).double(), 1.0)
    nothing = torch.zeros(0).double()
    assert unstable.largest_steps(nothing, 1.0) == 0
    assert unstable.largest_ramps(nothing, 1.0) == 0


def test_at_radius_zero_pairs_at_zero_add_their_step_but_no_ramp():
    unstable = unstable_within(torch.tensor([[0.0, 0.0, 0.5], [0.0, 1.0, 0.0]]).double(), 0.0)
    values = torch.tensor([1.0, 2.0, 4.0, 8.0]).double()  # units 0, 0, 1, 2
    assert unstable.largest_steps(values, 0.0) >= (9.0 + 16 + 64) ** 0.5 * (1 - 1e-12)
    assert unstable.largest_ramps(values, 0.0) == pytest.approx(0.0, abs=1e-12)


def test_ties_switch_together():
    unstable = unstable_within(torch.full((3, 1), 0.5).double(), 0.5)
    assert unstable.largest_steps(torch.ones(3).double(), 0.5) == pytest.approx(3.0, rel=1e-9)


def test_nearest_pairs_of_several_units_share_the_radius():
    """Four units at distance 1 and radius 2: all switch. At radius 1.9 at most three do, at a price in between."""
    distance = torch.ones(1, 4).double()
    ones = torch.ones(4).double()
    assert unstable_within(distance, 2.0).largest_steps(ones, 2.0) == pytest.approx(2.0, rel=1e-9)
    bound = unstable_within(distance, 1.9).largest_steps(ones, 1.9)
    assert 3**0.5 <= bound <= 1.9 * (1 + 0.02)


@pytest.mark.parametrize("seed", range(20))
def test_knapsack_bounds_every_set(seed):
    generator = torch.Generator().manual_seed(seed)
    units = 1 + seed % 6
    values, costs = noise(generator, 8, units), noise(generator, 8, units)
    costs[:, 0] *= seed % 3 > 0  # free units
    values[:3] = values[:3].round()
    budget = noise(generator, 8) * units * 0.6
    budget[0] = 0
    sets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=units))).double()
    total = values @ sets.T
    affordable = costs @ sets.T <= budget[:, None] * (1 + 1e-12)
    best = total.masked_fill(~affordable, 0).amax(dim=1)
    bound = knapsack_bound(values, costs, budget)
    assert bool((best <= bound * (1 + ROUNDING) + 1e-12).all())
    assert bool((bound <= values.sum(dim=1) * (1 + ROUNDING)).all())


def test_knapsack_of_nothing_free_units_and_ties():
    one = torch.ones(1).double()
    empty = torch.zeros(1, 3).double()
    assert float(knapsack_bound(empty, empty, one)) == 0
    values, free = torch.tensor([[3.0, 2.0, 1.0]]).double(), torch.zeros(1, 3).double()
    assert float(knapsack_bound(values, free, 0 * one)) == pytest.approx(6.0)
    assert 5 <= float(knapsack_bound(values, free + 1, 2 * one)) <= 6
    assert 2 <= float(knapsack_bound(values * 0 + 1, free + 1, 2 * one)) < 3


def test_knapsack_with_tiny_and_huge_costs():
    values = torch.tensor([[1e-300, 1.0, 1e300]]).double()
    costs = torch.tensor([[1e-320, 1e-200, 1.0]]).double()
    assert float(knapsack_bound(values, costs, torch.tensor([1e-100]).double())) >= 1.0
    assert float(knapsack_bound(values, costs, torch.tensor([1.0]).double())) >= 1e300 * (1 - 1e-9)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1e-170), (torch.float32, 1e-24)], ids=str)
def test_effects_whose_squares_underflow_are_not_lost(dtype, size):
    effect, near = torch.tensor([3.0, 4.0], dtype=dtype) * size, torch.zeros(1, 2, dtype=dtype)
    unstable = unstable_within(near, 1.0)
    assert unstable.largest_steps(effect, 1.0) >= 5 * size
    assert unstable.largest_ramps(effect, 1.0) >= 4 * size
    assert float(largest_norm(unstable.pairs, effect, near[0], torch.ones(1, dtype=dtype))) >= 5 * size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_small_radius_against_large_effects_has_no_price_beyond_the_type(dtype):
    unstable = unstable_within(torch.tensor([[0.5e-16, 0.0]], dtype=dtype), 1e-15)
    assert unstable.largest_steps(torch.full((2,), 1e6, dtype=dtype), 1e-15) >= 2**0.5 * 1e6
