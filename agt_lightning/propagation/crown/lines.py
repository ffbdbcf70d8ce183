"""Two lines around a function of one number over an interval: one nowhere above it, one nowhere below it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.interval import Interval
from agt_lightning.rules.base import Site

BISECTIONS = 30
"""Steps in the search for a tangent; the line is sound after any number of them."""

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Lines:
    """Two lines, ``below_slope · x + below_offset <= f(x) <= above_slope · x + above_offset`` on an interval of x.

    Slopes are of shape (b, r, *shape) or broadcast to it, offsets of shape (b, 1, *shape).
    """

    below_slope: Tensor
    below_offset: Tensor
    above_slope: Tensor
    above_offset: Tensor


LinesOf = Callable[[Site, Interval, Tensor], Lines]
"""Computes the lines of a call over the box (b, *shape) of its argument, given α of `slopes`."""


def kinked(slope: Callable[[Site], float]) -> LinesOf:
    """Return lines of ``max(x, a x)`` for a in [0, 1]: relu and leaky relu.

    Over [l, u] with l < 0 < u the function is convex, so its chord is above it and each line through the origin with a
    slope between a and 1 below it (docs/theory.md, eq. (12.6)). Elsewhere it is a line itself.

    Example:
        >>> box = Interval(torch.tensor([[-1.0]]), torch.tensor([[3.0]]))
        >>> lines = kinked(lambda site: 0.0)(None, box, torch.tensor([[[1.0]]]))
        >>> lines.above_slope, lines.above_offset, lines.below_slope
        (tensor([[[0.7500]]]), tensor([[[0.7500]]]), tensor([[[1.]]]))
    """

    def lines(site: Site, box: Interval, alpha: Tensor) -> Lines:
        a = slope(site)
        lower, upper = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
        positive, negative = lower >= 0, upper <= 0
        share = upper.clamp(min=0) / torch.where(positive | negative, 1.0, upper - lower)
        share = torch.where(positive, 1.0, torch.where(negative, 0.0, share))
        offset = torch.where(positive | negative, 0.0, -lower * share) * (1 - a)
        alpha = torch.where(positive, 1.0, torch.where(negative, 0.0, alpha))
        return Lines(a + (1 - a) * alpha, torch.zeros_like(offset), a + (1 - a) * share, offset)

    return lines


def sigmoidal(function: Function, derivative: Function) -> LinesOf:
    """Return lines of a rising function, convex below zero, concave above, odd up to a constant: tanh and sigmoid.

    The line below comes from the line above of ``-f(-x)``, a function of the same kind with the same derivative.
    """

    def lines(site: Site, box: Interval, alpha: Tensor) -> Lines:
        lower, upper = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
        above_slope, above_offset = _line_above(function, derivative, lower, upper)
        below_slope, offset = _line_above(lambda x: -function(-x), derivative, -upper, -lower)
        return Lines(below_slope, -offset, above_slope, above_offset)

    return lines


def _line_above(function: Function, derivative: Function, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and offset of a line above f: a tangent at a point of the concave part, or the chord.

    The tangent at d >= 0 is above f on [0, u] since f is concave there; if it is above f at l as well, it is above f on
    [l, 0] since f is convex there. If it is below f at l even for d = u, the chord is above f:
    docs/theory.md, eq. (12.7).
    """
    at_lower, at_upper = function(lower), function(upper)

    def clears(point: Tensor) -> Tensor:
        return function(point) + derivative(point) * (lower - point) >= at_lower

    low, high = lower.clamp(min=0), upper.clamp(min=0)
    straddles = lower < 0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        sound = clears(middle)
        low, high = torch.where(sound, low, middle), torch.where(sound, middle, high)
    point = torch.where(straddles, high, (lower + upper) / 2)
    tangent = torch.where(straddles, clears(high), True) & (upper > 0)
    width = torch.where(upper > lower, upper - lower, 1.0)
    chord = torch.where(upper > lower, (at_upper - at_lower) / width, derivative(lower))
    slope = torch.where(tangent, derivative(point), chord)
    anchor = torch.where(tangent, point, upper)
    return slope, function(anchor) - slope * anchor
