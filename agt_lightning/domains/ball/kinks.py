"""Largest effect of ReLUs that switch, when the movement that switches them is shared among all units."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agt_lightning.domains.ball.pairs import Pairs
from agt_lightning.rounding import accumulated_roundoff

_HALVINGS = 6
_REFINEMENTS = 4
"""Evaluations in search of the best Lagrange multiplier; every multiplier is sound, more evaluations are tighter."""

_PRICES = 5
"""Multipliers that the knapsack tries: from a half to a 32nd of what it would be without a budget."""


@dataclass(frozen=True)
class Kinks:
    """Pairs of a sample and a unit that can switch within the ball, sorted by unit and then by distance.

    Args:
        pairs: the pairs, in this order.
        distance: how far the unit's weights must move at least to switch it for this sample, (m,).
        last: whether the pair is the last of its unit, (m,).
    """

    pairs: Pairs
    distance: Tensor
    last: Tensor

    @classmethod
    def sorted(cls, pairs: Pairs, distance: Tensor) -> Kinks:
        """From pairs in any order and their distances, nonnegative."""
        order = _by_unit_and_distance(pairs.unit, distance)
        unit = pairs.unit.index_select(0, order)
        last = torch.ones_like(unit, dtype=torch.bool)
        last[:-1] = unit[1:] != unit[:-1]
        return cls(Pairs(pairs.sample.index_select(0, order), unit), distance.index_select(0, order), last)

    def cumulated(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of ``values``, (m,), over the pairs of the same unit up to and with each pair, and its rounding error."""
        total = values.cumsum(0)
        ends = torch.where(self.last, total, torch.zeros_like(total))
        before = torch.zeros_like(total)
        before[1:] = ends.cummax(0).values[:-1]  # total at the end of the units before; sums only grow
        return total - before, accumulated_roundoff(len(values) + 1, values.dtype) * 2 * total[-1:]

    def largest_switch(self, effect: Tensor, radius: float) -> float:
        """Upper bound on ``(Σ_j (Σ_{t_ij <= r_j} effect_ij)²)^½`` over all r with ``Σ_j r_j² <= radius²``.

        Args:
            effect: what each pair adds once it has switched, (m,), nonnegative.
            radius: of the ball.
        """
        total, slack = self.cumulated(effect)
        return self._shared((total + slack).square(), self.distance.square(), radius)

    def largest_slip(self, effect: Tensor, radius: float) -> float:
        """The same for pairs that add ``effect_ij (r_j - t_ij)`` once they have switched.

        Pairs at distance zero matter here: where a unit is exactly at zero, the slope of its ReLU may be anything
        between 0 and 1, and what a slope other than 0 adds to the coupling of its layers is covered by its slip.
        """
        grown, slack = self.cumulated(effect)
        offset, offset_slack = self.cumulated(effect * self.distance)
        next_distance = torch.full_like(self.distance, radius)
        next_distance[:-1] = torch.where(self.last[:-1], next_distance[:-1], self.distance[1:])
        # Linear between two pairs of a unit, so its square minus a multiple of r² is largest at their distances.
        value = ((grown + slack) * next_distance - (offset - offset_slack)).clamp(min=0).square()
        return self._shared(value, next_distance.square(), radius)

    def _shared(self, value: Tensor, cost: Tensor, radius: float) -> float:
        """By weak duality ``Σ_j max value <= ρ radius² + Σ_j max(value - ρ cost)`` for every ρ >= 0; the best found."""
        if len(value) == 0:
            return 0.0
        budget = radius * radius

        def dual(multiplier: float) -> float:
            return multiplier * budget + self._sum_of_largest(torch.sub(value, cost, alpha=multiplier))

        everything = dual(0.0)
        if budget == 0 or everything == 0:
            return math.sqrt(everything)
        return math.sqrt(min(everything, _smallest(dual, everything / budget)))

    def _sum_of_largest(self, values: Tensor) -> float:
        """Sum over units of the largest of ``values``, (m,), or zero."""
        if values.device.type != "cpu":
            least = values.new_zeros(int(self.pairs.unit[-1]) + 1)
            return float(least.scatter_reduce(0, self.pairs.unit, values, "amax").sum())
        largest = np.maximum.reduceat(values.numpy(), self._first)  # a quarter of the time that scattering takes
        return float(largest.clip(min=0).sum())

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """Where each unit's pairs begin."""
        return np.concatenate([[0], np.flatnonzero(self.last.numpy())[:-1] + 1])


def _by_unit_and_distance(unit: Tensor, distance: Tensor) -> Tensor:
    """The order of pairs by unit, and by distance among those of the same unit."""
    if unit.device.type != "cpu" or not len(unit):
        order = distance.argsort()
        return order[unit[order].argsort(stable=True)]
    nearest = np.argsort(distance.numpy())  # a fifth of the time that sorting by torch takes
    narrow = unit.numpy().astype(np.min_scalar_type(int(unit.max())))  # short integers are sorted in linear time
    return torch.from_numpy(nearest[np.argsort(narrow[nearest], kind="stable")])


def _smallest(dual: Callable[[float], float], largest: float) -> float:
    """Small value of a convex function on [0, largest]: halving first, for the best point can be near zero."""
    points = [largest / 2**k for k in range(_HALVINGS + 1)]
    values = [dual(point) for point in points]
    best = min(range(len(points)), key=values.__getitem__)
    middle, value = points[best], values[best]
    step = middle / 2
    for _ in range(_REFINEMENTS):
        step /= 2
        candidates = [(dual(point), point) for point in (middle - step, middle + step)]
        value, middle = min([(value, middle), *candidates])
    return value


def knapsack(pairs: Pairs, values: Tensor, costs: Tensor, budget: Tensor) -> Tensor:
    """Upper bound on ``Σ_j values_ij`` over sets of units with ``Σ_j costs_ij <= budget_i``, for each sample.

    By weak duality ``λ budget + Σ_j max(0, values_j - λ costs_j)`` for every λ >= 0; the best of a few, without
    sorting.

    Args:
        pairs: the candidates.
        values: (m,), nonnegative.
        costs: (m,), nonnegative.
        budget: (b,).

    Returns:
        (b,)

    Example:
        >>> both = Pairs(torch.tensor([0, 0]), torch.tensor([0, 1]))
        >>> knapsack(both, torch.tensor([4.0, 1.0]), torch.tensor([2.0, 2.0]), torch.tensor([3.0]))
        tensor([4.5833])
    """
    finite = math.sqrt(torch.finfo(budget.dtype).max)  # without a budget; a lower price is sound as well
    everything = pairs.sums(values, len(budget))
    unit_price = (everything / budget).nan_to_num(nan=0.0, posinf=finite).clamp(max=finite)
    paid = pairs.by_sample(unit_price) * costs
    best = everything
    for power in range(1, _PRICES + 1):
        left = torch.sub(values, paid, alpha=0.5**power).clamp_(min=0)
        best = torch.minimum(best, everything / 2**power + pairs.sums(left, len(budget)))
    return best
