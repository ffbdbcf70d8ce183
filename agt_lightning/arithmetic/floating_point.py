"""What rounding can change: in the run that bounds must contain, and in the computation of the bounds."""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic.compiled import flat, moved_outward
from agt_lightning.interval import Interval
from agt_lightning.memory import place_of
from agt_lightning.rounding import accumulated_roundoff

SMALLEST_WEIGHT = 2.0**-40
"""Smallest weight of a sample in a loss: gradients of a run have it as a factor, those that are bounded have not."""


def unless(still: Tensor, slack: float, like: Tensor) -> Tensor:
    """Return a slack for every element, and zero for those that stay; in the type of the bounds, since it can be tiny.

    Args:
        still: which elements stay, of the shape of ``like``.
        slack: for the others.
        like: a tensor of the wanted type.

    Example:
        >>> unless(torch.tensor([True, False]), 1e-300, torch.zeros(2, dtype=torch.float64))
        tensor([ 0.0000e+00, 1.0000e-300], dtype=torch.float64)
    """
    return torch.full_like(like, slack).masked_fill(still, 0.0)


@dataclass(frozen=True)
class Arithmetic:
    """The roundings that bounds must cover: those of the training run, and those of their own computation.

    Standard model: each operation rounds to nearest, ``fl(x ∘ y) = (x ∘ y)(1 + δ) + ε`` with |δ| <= u, and |ε| at most
    the smallest normal number, which covers subnormal results that are rounded or flushed to zero.

    A sum of products in floating point is the exact sum for factors that differ relatively by γ_k, factor by factor
    (backward error). So bounds on one factor of each product are widened relatively before the exact product is taken;
    no tensor of magnitudes is needed, and zeros stay zeros.

    Args:
        run: floating point type in which the run computes; None for a run in real arithmetic.
        own: floating point type in which the bounds are computed.

    Reference:
        docs/floats.md, section 1; Higham 2002, sections 2.2 and 3.1.

    Example:
        >>> single = Arithmetic(torch.float32, torch.float64)
        >>> 100 * 2**-24 < single.relative(100) < 100.01 * 2**-24
        True
    """

    run: torch.dtype | None
    own: torch.dtype

    def relative(self, roundings: int) -> float:
        """Return by how much to widen a factor, relatively, whose products go through so many roundings.

        Own computation is allowed ``16 k + 64`` roundings: a bound takes up to five times the operations of the run and
        sums up to three times the magnitudes, and widening rounds four times itself.

        Args:
            roundings: number k on the longest path of the run from this factor to the result.
        """
        return self.run_relative(roundings) + self.own_relative(roundings)

    def run_relative(self, roundings: int) -> float:
        """Return the part of `relative` that covers the run."""
        return 0.0 if self.run is None else accumulated_roundoff(roundings, self.run)

    def own_relative(self, roundings: int) -> float:
        """Return the part of `relative` that covers the bounds' own computation of such a sum."""
        return accumulated_roundoff(16 * roundings + 64, self.own)

    def absolute(self, roundings: int = 1) -> float:
        """Return by how much underflow can move a result of so many roundings.

        The run scales all gradients by the weight of a sample, at least 2^-40, which bounds are computed without.
        """
        return roundings * self.least / SMALLEST_WEIGHT

    @property
    def least(self) -> float:
        """The largest error of one operation that underflows, in the run and in the bounds together."""
        return 2 * (torch.finfo(self.own).tiny + (0.0 if self.run is None else torch.finfo(self.run).tiny))

    def stored(self, value: Interval) -> Interval:
        """Return bounds on numbers as a run stores them: rounding to nearest keeps order, so the ends are rounded.

        Example:
            >>> tenth = Interval.point(torch.tensor([0.1], dtype=torch.float64))
            >>> Arithmetic(torch.float32, torch.float64).stored(tenth).lower.item()
            0.10000000149011612
        """
        if self.run is None or torch.finfo(self.run).eps <= torch.finfo(value.dtype).eps:
            return value
        return value.mapped(lambda bound: bound.to(self.run).to(bound.dtype), nonnegative=value.nonnegative)

    def overflow(self, value: Interval) -> float:
        """Return the largest size in these bounds if it is infinite in the type of a run alone, and 0 otherwise.

        Infinite bounds are found elsewhere, so nothing is done where the bounds have no larger range than the run.

        Example:
            >>> huge = Interval.point(torch.tensor([1e39], dtype=torch.float64))
            >>> Arithmetic(torch.float32, torch.float64).overflow(huge)
            1e+39
        """
        if self.run is None or torch.finfo(self.run).max >= torch.finfo(value.dtype).max or not value.lower.numel():
            return 0.0
        largest = max(float(value.upper.amax()), -float(value.lower.amin()))
        return largest if math.isfinite(largest) and largest > torch.finfo(self.run).max else 0.0

    def in_range(self, exact: Interval, wide: Interval) -> Interval:
        """Cut bounds on results that are rounded once to the largest number of the run's type, where that is right.

        What lies less than half a unit in the last place beyond the largest number is rounded to it. So masks of
        attention, which are filled with the least number of a type, stay in its range.

        Args:
            exact: bounds on the results before they are rounded.
            wide: on those after it.

        Example:
            >>> least = Interval.point(torch.tensor([torch.finfo(torch.float32).min], dtype=torch.float64))
            >>> single = Arithmetic(torch.float32, torch.float64)
            >>> single.in_range(least, single.outward(least)).lower.item() == least.lower.item()
            True
        """
        if self.run is None or self.overflow(wide) == 0.0:
            return wide
        largest = torch.finfo(self.run).max
        reach = largest * (1 + torch.finfo(self.run).eps / 8)  # half a unit is an eps / 4 of it
        inside = (exact.lower >= -reach) & (exact.upper <= reach)
        lower = torch.where(inside, wide.lower.clamp(min=-largest), wide.lower)
        upper = torch.where(inside, wide.upper.clamp(max=largest), wide.upper)
        return Interval.trusted(lower, upper, nonnegative=wide.nonnegative)

    def outward(self, value: Interval, roundings: int = 1) -> Interval:
        """Widen bounds relatively to themselves; zeros stay zeros, and signs stay.

        Args:
            value: bounds, points included. ``nonnegative`` is kept.
            roundings: as in `relative`.

        Example:
            >>> wide = Arithmetic(torch.float32, torch.float64).outward(Interval.point(torch.tensor([0.0, 1.0])))
            >>> wide.lower, wide.width[1] > 2**-23
            (tensor([0.0000, 1.0000]), tensor(True))
        """
        by = self.relative(roundings)
        ends = (value.lower,) if value.is_point else (value.lower, value.upper)
        arrays = None if value.nonnegative else flat(*ends)
        if arrays is None:
            return value.widened_relatively(by)
        lower, upper = torch.empty_like(value.lower), torch.empty_like(value.upper)
        moved_outward(arrays[0], -by, lower.numpy().reshape(-1))
        moved_outward(arrays[-1], by, upper.numpy().reshape(-1))
        return Interval.trusted(lower, upper)

    def clear_of_underflow(self, value: Interval, roundings: int = 1) -> Interval:
        """Widen bounds on results, each of so many products, by what underflow can change."""
        return value.widened(self.absolute(roundings), nonnegative=value.nonnegative)


@dataclass(frozen=True)
class SharingArithmetic(Arithmetic):
    """Roundings of bounds some of which are the same memory: those are widened once."""

    _widened: dict[Hashable, tuple[Interval, Interval]] = field(default_factory=dict, compare=False, repr=False)

    @override
    def outward(self, value: Interval, roundings: int = 1) -> Interval:
        place = (place_of(value.lower), place_of(value.upper), value.nonnegative, roundings)
        if place not in self._widened:  # the bounds are kept beside the result, so that their memory is not used anew
            self._widened[place] = (value, super().outward(value, roundings))
        return self._widened[place][1].rearranged(lambda bound: bound.reshape(value.shape))
