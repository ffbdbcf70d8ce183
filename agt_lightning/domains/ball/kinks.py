"""Largest effect of ReLUs that switch, when the movement that switches them is shared among all units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.rounding import accumulated_roundoff

_MULTIPLIERS = 12
"""Steps of the search for the best Lagrange multiplier; every multiplier is sound, more steps are tighter."""


@dataclass(frozen=True)
class Kinks:
    """Pairs of a sample and a unit that can switch within the ball, sorted by unit and then by distance.

    Args:
        sample: position of the sample, (m,).
        unit: position of the unit, (m,).
        distance: how far the unit's weights must move at least to switch it there, (m,).
        last: whether the pair is the last of its unit, (m,).
    """

    sample: Tensor
    unit: Tensor
    distance: Tensor
    last: Tensor

    @classmethod
    def within(cls, distance: Tensor, radius: float, possible: Tensor | None = None) -> Kinks:
        """All pairs that a movement of at most ``radius`` can switch.

        Args:
            distance: (b, h), nonnegative.
            radius: largest movement of one unit's weights.
            possible: (b, h), false where a unit is known not to switch.
        """
        near = distance <= radius
        if possible is not None:
            near &= possible
        unit, sample = near.T.nonzero(as_tuple=True)
        reach = distance[sample, unit]
        order = reach.argsort()
        order = order[unit[order].argsort(stable=True)]
        unit, sample = unit[order], sample[order]
        last = torch.ones_like(unit, dtype=torch.bool)
        last[:-1] = unit[1:] != unit[:-1]
        return cls(sample, unit, reach[order], last)

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
        grown, offset = grown + slack, offset - offset_slack
        next_distance = torch.full_like(self.distance, radius)
        next_distance[:-1] = torch.where(self.last[:-1], next_distance[:-1], self.distance[1:])
        # Linear between two pairs of a unit, so its square minus a multiple of r² is largest at their distances.
        value = (grown * next_distance - offset).clamp(min=0).square()
        return self._shared(value, next_distance.square(), radius)

    def _shared(self, value: Tensor, cost: Tensor, radius: float) -> float:
        """By weak duality ``Σ_j max value <= ρ radius² + Σ_j max(value - ρ cost)`` for every ρ >= 0; the best found."""
        if len(value) == 0:
            return 0.0
        budget = radius * radius

        def dual(multiplier: float) -> float:
            spare = (value - multiplier * cost).clamp(min=0)
            best = torch.zeros(int(self.unit.max()) + 1, dtype=value.dtype, device=value.device)
            return multiplier * budget + float(best.scatter_reduce(0, self.unit, spare, "amax").sum())

        everything = dual(0.0)
        low, high = 0.0, everything / budget if budget > 0 else 0.0
        best = everything
        for _ in range(_MULTIPLIERS):  # the dual is convex in its multiplier
            left, right = low + (high - low) / 3, high - (high - low) / 3
            at_left, at_right = dual(left), dual(right)
            best = min(best, at_left, at_right)
            low, high = (low, right) if at_left <= at_right else (left, high)
        return math.sqrt(best)


def knapsack(values: Tensor, costs: Tensor, budget: Tensor) -> Tensor:
    """Upper bound on ``Σ_j values_j`` over sets of units with ``Σ_j costs_j <= budget``, for each sample.

    By weak duality at the multiplier of the fractional optimum, which is exact for fractions of units.

    Args:
        values: (b, h), nonnegative; zero where a unit is no candidate.
        costs: (b, h), nonnegative.
        budget: (b,).

    Example:
        >>> knapsack(torch.tensor([[4.0, 1.0]]), torch.tensor([[2.0, 2.0]]), torch.tensor([3.0]))
        tensor([4.5000])
    """
    limits = torch.finfo(costs.dtype)
    ratio = (values / costs.clamp(min=limits.tiny)).clamp(max=limits.max / 2)
    order = ratio.argsort(dim=1, descending=True)
    spent = costs.gather(1, order).cumsum(dim=1)
    over = spent > budget[:, None]
    fits = ~over.any(dim=1)
    critical = order.gather(1, over.to(torch.uint8).argmax(dim=1, keepdim=True))
    multiplier = torch.where(fits[:, None], torch.zeros_like(budget)[:, None], ratio.gather(1, critical))
    relaxed = multiplier[:, 0] * budget + (values - multiplier * costs).clamp(min=0).sum(dim=1)
    return torch.minimum(relaxed, values.sum(dim=1))
