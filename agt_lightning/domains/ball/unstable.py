"""Unstable units: neurons whose ReLU can differ between two evaluations of a network, as pairs of a sample and a unit.

How many of them switch, and what that adds, is limited by the movement that switches them, which all units share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.layers import Layer
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff

_HALVINGS = 6
_REFINEMENTS = 4
"""Evaluations in search of the best Lagrange multiplier; every multiplier is sound, more evaluations are tighter."""

_PRICES = 5
"""Multipliers that the knapsack tries: from a half to a 32nd of what it would be without a budget."""


@dataclass(frozen=True)
class Pairs:
    """Some pairs of a sample and a unit, by sample; kept one by one, since few of all pairs matter.

    Args:
        sample: position of the sample, (m,), ascending.
        unit: position of the unit, (m,).

    Example:
        >>> pairs = Pairs.where(torch.tensor([[True, False], [True, True]]))
        >>> pairs.sums(pairs.of(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), samples=2)
        tensor([1., 7.])
    """

    sample: Tensor
    unit: Tensor

    @classmethod
    def where(cls, chosen: Tensor) -> Pairs:
        """Return all pairs that are true in a matrix (b, h)."""
        return cls.at(true_positions(chosen), chosen.shape[1])

    @classmethod
    def at(cls, positions: Tensor, units: int) -> Pairs:
        """Return pairs from ascending positions in a flat matrix of so many units."""
        sample = positions // units
        return cls(sample, positions - sample * units)

    def positions(self, units: int) -> Tensor:
        """Positions in a flat matrix of so many units, (m,)."""
        return self.sample * units + self.unit

    def of(self, matrix: Tensor) -> Tensor:
        """Entries of a matrix (b, h), or (1, h) with one row for all samples, (m,)."""
        if len(matrix) == 1:
            return self.by_unit(matrix[0])
        return matrix.reshape(-1).index_select(0, self.positions(matrix.shape[1]))

    def by_sample(self, values: Tensor) -> Tensor:
        """Values (b,) of the samples, (m,)."""
        return values.index_select(0, self.sample)

    def by_unit(self, values: Tensor) -> Tensor:
        """Values (h,) of the units, (m,)."""
        return values.index_select(0, self.unit)

    def among(self, kept: Tensor) -> Self:
        """Return those that are true in ``kept``, (m,)."""
        return self.taken(true_positions(kept))

    def taken(self, positions: Tensor) -> Self:
        """Return the pairs at these positions, in their order."""
        return replace(self, **{of.name: getattr(self, of.name).index_select(0, positions) for of in fields(self)})

    def order_by_unit(self) -> Tensor:
        """Positions of the pairs by unit; those of the same unit keep their order, (m,)."""
        if self.unit.device.type != "cpu" or not len(self.unit):
            return self.unit.argsort(stable=True)
        narrow = self.unit.numpy().astype(np.min_scalar_type(int(self.unit.max())))
        return torch.from_numpy(np.argsort(narrow, kind="stable"))  # short integers are sorted in linear time

    def order_by_unit_and(self, key: Tensor) -> Tensor:
        """Positions of the pairs by unit, and by a key, (m,), among those of the same unit, ascending, (m,)."""
        on_cpu = key.device.type == "cpu"  # there numpy sorts in a fifth of the time that torch takes
        order = torch.from_numpy(np.argsort(key.numpy())) if on_cpu else key.argsort()
        return order.index_select(0, self.taken(order).order_by_unit())

    def with_open_sign(self, *bounds: Interval) -> Self:
        """Return those whose preactivation may have either sign within the hull of bounds on it, (b, h) each."""
        return self.among(self.sign_is_open(*bounds))

    def sign_is_open(self, *bounds: Interval) -> Tensor:
        """Whether each preactivation may have either sign within the hull of bounds on it, (b, h); boolean (m,)."""
        lower = torch.stack([self.of(interval.lower) for interval in bounds]).amin(dim=0)
        upper = torch.stack([self.of(interval.upper) for interval in bounds]).amax(dim=0)
        return (lower <= 0) & (upper >= 0)

    def sums(self, values: Tensor, samples: int) -> Tensor:
        """Sum of ``values``, (m,), for each sample, (b,)."""
        return values.new_zeros(samples).index_add_(0, self.sample, values)

    def any(self, like: Tensor) -> Tensor:
        """Whether each sample has a pair, as 0 or 1 of the type of ``like``, (b,)."""
        return torch.zeros_like(like).index_fill_(0, self.sample, 1.0)


def true_positions(chosen: Tensor) -> Tensor:
    """Return ascending positions at which a tensor is true, as if it were flat, (m,)."""
    if chosen.device.type != "cpu":
        return chosen.flatten().nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(chosen.numpy()))  # a quarter of the time that `nonzero` takes


@dataclass(frozen=True)
class UnstableUnits:
    """Units that can switch within the ball, sorted by unit and then by distance.

    With r_j the movement of unit j's own weights, the pair of sample i switches only if ``t_ij <= r_j``, and
    ``Σ_j r_j² <= R²``.

    Args:
        pairs: the pairs, in this order.
        distance: t, how far the unit's weights must move at least to switch it for this sample, (m,).
        last: whether the pair is the last of its unit, (m,).
    """

    pairs: Pairs
    distance: Tensor
    last: Tensor

    @classmethod
    def sorted(cls, pairs: Pairs, distance: Tensor) -> UnstableUnits:
        """Sort pairs with their distances, nonnegative."""
        order = pairs.order_by_unit_and(distance)
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

    def largest_steps(self, effect: Tensor, radius: float, limit: Tensor | None = None) -> float:
        """Upper bound on ``(Σ_j φ_j(r_j)²)^½``, ``φ_j(r) = Σ_{t_ij <= r} effect_ij``, over ``Σ_j r_j² <= radius²``.

        Args:
            effect: what each pair adds once it has switched, (m,), nonnegative.
            radius: of the ball.
            limit: upper bound on each φ_j, however far the unit moves, (h,); None without one.

        Reference:
            docs/theory.md, eq. (10.13).
        """
        if not bool(effect.any()):
            return 0.0
        total, slack = self.cumulated(effect)
        total = total + slack
        if limit is not None:
            total = torch.minimum(total, self.pairs.by_unit(limit))
        return self._shared(total.square(), self.distance.square(), radius)

    def largest_ramps(self, effect: Tensor, radius: float) -> float:
        """Upper bound on ``(Σ_j (Σ_i effect_ij (r_j - t_ij)⁺)²)^½`` over the same r: the slips.

        Pairs at distance zero matter here: where a unit is exactly at zero, the slope of its ReLU may be anything
        between 0 and 1, and what a slope other than 0 adds to the coupling of its layers is covered by its slip.
        """
        if not bool(effect.any()):
            return 0.0
        grown, slack = self.cumulated(effect)
        slack = slack + accumulated_roundoff(8, effect.dtype) * grown  # of the difference below
        offset, offset_slack = self.cumulated(effect * self.distance)
        next_distance = torch.full_like(self.distance, radius)
        next_distance[:-1] = torch.where(self.last[:-1], next_distance[:-1], self.distance[1:])
        # Linear between two pairs of a unit, so its square minus a multiple of r² is largest at their distances.
        value = ((grown + slack) * next_distance - (offset - offset_slack)).clamp(min=0).square()
        return self._shared(value, next_distance.square(), radius)

    def _shared(self, value: Tensor, cost: Tensor, radius: float) -> float:
        """By weak duality ``Σ_j max value <= ρ radius² + Σ_j max(value - ρ cost)`` for every ρ >= 0; the best found."""
        lost = _lost_squares(value) * len(value)
        budget = radius * radius + lost

        def dual(multiplier: float) -> float:
            return multiplier * budget + self._sum_of_largest(torch.sub(value, cost, alpha=multiplier))

        everything = dual(0.0)
        # Rounding of the sum over units, and of the differences that are summed.
        upward = accumulated_roundoff(len(value) + 16, value.dtype) * everything
        largest = min(everything / budget, math.sqrt(torch.finfo(value.dtype).max))  # its product with a cost is finite
        return math.sqrt(min(everything, _smallest(dual, largest)) + 2 * upward + lost)

    def _sum_of_largest(self, values: Tensor) -> float:
        """Sum over units of the largest of ``values``, (m,), or zero."""
        if values.device.type != "cpu":
            least = values.new_zeros(int(self.pairs.unit[-1]) + 1)
            return float(least.scatter_reduce(0, self.pairs.unit, values, "amax").sum())
        largest = np.maximum.reduceat(values.numpy(), self._first)  # a quarter of the time that scattering takes
        return float(largest.clip(min=0).sum())

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """Position of each unit's first pair."""
        return np.concatenate([[0], np.flatnonzero(self.last.numpy())[:-1] + 1])


def _smallest(dual: Callable[[float], float], largest: float) -> float:
    """Return a small value of a convex function on [0, largest]: halving first, for the best point can be near zero."""
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


def _lost_squares(like: Tensor) -> float:
    """Return what a square, its price and their difference can lose to underflow, above zero in the type's range."""
    return 4 * torch.finfo(like.dtype).tiny


def knapsack(pairs: Pairs, values: Tensor, costs: Tensor, budget: Tensor) -> Tensor:
    """Upper bound on ``Σ_j values_ij`` over sets of units with ``Σ_j costs_ij <= budget_i``, for each sample.

    By weak duality ``λ budget + Σ_j max(0, values_j - λ costs_j)`` for every λ >= 0; the best of a few, without
    sorting. Counting all units instead makes the radius of a head of 64 and 64 hidden units 0.2 % larger after 10 steps
    with poisoned features and 1.6 % after 16 (household power consumption; up to 20 % where the ball grows faster),
    and changes nothing on one hidden layer.

    Costs and budget are squares, which can lose to underflow what the budget is raised by.

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
    lost = _lost_squares(values) * pairs.sums(torch.ones_like(values), len(budget))
    unit_price = (everything / (budget + lost)).nan_to_num(nan=0.0, posinf=finite).clamp(max=finite)
    paid = pairs.by_sample(unit_price) * costs
    best = everything
    for power in range(1, _PRICES + 1):
        left = torch.sub(values, paid, alpha=0.5**power).clamp_(min=0)
        best = torch.minimum(best, everything / 2**power + pairs.sums(left, len(budget)))
    return best + accumulated_roundoff(16, values.dtype) * everything  # for the differences; sums round relatively


def largest_norm(pairs: Pairs, sizes: Tensor, distance: Tensor, budget: Tensor) -> Tensor:
    """Upper bound on ``(Σ_j size_ij²)^½`` over sets of units with ``Σ_j distance_ij² <= budget_i``, for each sample.

    Args:
        pairs: the candidates.
        sizes: (m,), nonnegative; their squares may underflow.
        distance: (m,), nonnegative.
        budget: (b,).

    Returns:
        (b,)

    Example:
        >>> both = Pairs(torch.tensor([0, 0]), torch.tensor([0, 1]))
        >>> norm = largest_norm(both, torch.tensor([3e-30, 4e-30]), torch.zeros(2), torch.ones(1))
        >>> bool(norm >= 5e-30)
        True
    """
    squares, moving = knapsack(pairs, sizes.square(), distance.square(), budget), pairs.sums(sizes, len(budget)) > 0
    return squares.sqrt() + (_lost_squares(sizes) * pairs.sums(torch.ones_like(sizes), len(budget)) * moving).sqrt()


@dataclass(frozen=True)
class UnstableBetween:
    """Units of one layer that may differ between two evaluations of a network, as many as their movement can pay.

    For each sample the units that differ have ``Σ_j distance_ij² <= budget_i``.

    Args:
        pairs: the candidates.
        distance: least movement of the unit's preactivation that switches it, (m,).
        budget: squared movement of all preactivations of the layer, (b,).
    """

    pairs: Pairs
    distance: Tensor
    budget: Tensor

    @cached_property
    def any(self) -> Tensor:
        """Whether a sample has a candidate, as 0 or 1, (b,)."""
        return self.pairs.any(self.budget)

    def times(self, factor: float) -> UnstableBetween:
        """Return the same units with a larger budget."""
        return UnstableBetween(self.pairs, self.distance, factor * self.budget)

    def largest_sum(self, values: Tensor) -> Tensor:
        """Upper bound on the sum of ``values``, (m,), over the units that differ, (b,)."""
        return knapsack(self.pairs, values, self.distance.square(), self.budget)

    def largest_norm(self, sizes: Tensor) -> Tensor:
        """Upper bound on the Euclidean norm of ``sizes``, (m,), over the units that differ, (b,)."""
        return largest_norm(self.pairs, sizes, self.distance, self.budget)

    def columns(self, matrices: Tensor, error: Tensor) -> Tensor:
        """Upper bound on the Frobenius norm of the columns at the units that differ, (b,).

        Args:
            matrices: one per sample, (b, q, h).
            error: upper bound on the norm of their rounding, (b,).
        """
        return self.largest_norm(self._column_norms(matrices, error))

    def _column_norms(self, matrices: Tensor, error: Tensor) -> Tensor:
        """Upper bound on the norm of each column, (m,)."""
        norms: Tensor = euclidean_norm(matrices[self.pairs.sample, :, self.pairs.unit], dim=1)
        return norms + self.pairs.by_sample(error)

    def product(self, matrices: Tensor, error: Tensor, weight: Tensor, norm: float) -> Tensor:
        """Upper bound on ``‖B U W‖`` for these columns B U of ``matrices``, (b,).

        Args:
            matrices: B, one per sample, (b, q, h).
            error: upper bound on the norm of their rounding, (b,).
            weight: W of the layer whose results these units are, (h, k).
            norm: its norm.
        """
        columns = self._column_norms(matrices, error)
        one_by_one = self.largest_sum(columns * euclidean_norm(weight, dim=1)[self.pairs.unit])
        return torch.minimum(norm * self.columns(matrices, error), one_by_one)

    def only(self, values: Tensor) -> Tensor:
        """``values``, (b, h), at the candidates, and zero elsewhere."""
        pairs = self.pairs
        return torch.zeros_like(values).index_put((pairs.sample, pairs.unit), pairs.of(values))

    def weight_norm(self, following: Layer) -> Tensor:
        """Upper bound on ``‖W U‖`` on the units U that differ, (b,), W of the following layer."""
        return self.largest_norm(self.pairs.by_unit(following.column_norms)).clamp(max=following.norm)
