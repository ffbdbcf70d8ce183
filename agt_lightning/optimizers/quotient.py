r"""Exact bounds on the quotient of adaptive optimizers, whose gradient is in numerator and denominator.

    f(x) = (A + a x) / (√max(M, V + b x²) + e),    a, b > 0,  V, M, e >= 0.

For A >= 0, f rises up to a single peak x* > 0 and falls beyond it: with S = √(V + b x²), f' has the sign of
``a V + a e S - A b x``, which is convex in x, positive for x <= 0 and changes its sign at most once for x > 0, since of
the two solutions of its squared equation

    (A² b - a² e²) b x² - 2 a A b V x + a² V (V - e²) = 0

only the larger one, and only if A² b > a² e², solves the equation itself. While ``M > V + b x²``, f rises, so the peak
is at least √((M - V) / b). For A < 0, ``f(x; A) = -f(-x; -A)`` falls, then rises: its largest value over an interval is
at one of the ends. f rises with A; it falls with V and M where its numerator is positive and rises where it is
negative. So the largest value over boxes of A, V, M and x is one of three evaluations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic, unless
from agt_lightning.interval import Interval
from agt_lightning.optimizers.base import is_zero, require_in_range

ROUNDINGS = 12
"""Roundings of each summand of numerator and divisor, and of their quotient."""


def quotient(
    offset: Interval,
    slope: float,
    base: Interval,
    curvature: float,
    shift: float,
    x: Interval,
    floor: Interval | None = None,
    *,
    arithmetic: Arithmetic | None = None,
) -> Interval:
    """Return the smallest interval of f for independent A, V, M and x, widened by rounding.

    In floating point the two summands of the numerator are off relatively, by γ_k each, and so is the divisor, whose
    summands are nonnegative: f is off by γ_k of itself and by γ_k of ``(|A| + a |x|) / (√max(M, V + b x²) + e)``, which
    is at most ``|A| / (√max(M, V) + e) + a min(1 / √b, |x| / e)``. Underflow of the squares takes at most √η from the
    root, so it raises f by √η / e of itself (docs/floats.md, section 6). Where b x² overflows, f is taken for zero; the
    accumulated V is infinite then, which stops training (`checked_update`).

    Args:
        offset: A.
        slope: a > 0.
        base: V >= 0.
        curvature: b > 0.
        shift: e >= 0; positive unless ``base`` is positive.
        x: the gradient.
        floor: M >= 0; None if it is 0.
        arithmetic: of the run and of the bounds; None means that of the bounds alone.

    Example:
        >>> zero, x = Interval.point(torch.zeros(1)), Interval(torch.tensor([-1.0]), torch.tensor([3.0]))
        >>> quotient(zero, 1.0, zero, 1.0, 1.0, x)
        Interval(lower=tensor([-0.5000]), upper=tensor([0.7500]))
    """
    arithmetic = Arithmetic(None, x.dtype) if arithmetic is None else arithmetic
    upper = _largest(offset.upper, slope, base, curvature, shift, x, floor)
    lower = -_largest(-offset.lower, slope, base, curvature, shift, -x, floor)
    relative = arithmetic.relative(ROUNDINGS)
    underflow = 2 * math.sqrt(arithmetic.least) / shift if shift else 0.0
    bounds = Interval.trusted(lower, upper).widened_relatively(relative + underflow)
    return bounds.widened(_largest_summands(offset, slope, base, curvature, shift, x, floor) * relative)


def accumulated(before: Interval, kept: float, x: Interval, weight: float, arithmetic: Arithmetic) -> Interval:
    """Return ``V' = c V + w x²`` as a run computes it; zero stays zero.

    Args:
        before: V >= 0.
        kept: c >= 0.
        x: the gradient.
        weight: w >= 0.
        arithmetic: of the run and of the bounds.
    """
    square = x.square()
    require_in_range(arithmetic, square, "the square of a gradient")
    total = arithmetic.outward(before.scaled(kept) + square.scaled(weight), ROUNDINGS)
    slack = unless(is_zero(before) & is_zero(x), 2 * arithmetic.least, total.lower)
    return total.widened(slack, nonnegative=True)


def _largest_summands(
    offset: Interval, slope: float, base: Interval, curvature: float, shift: float, x: Interval, floor: Interval | None
) -> Tensor:
    """Bound ``(|A| + a |x|) / (√max(M, V + b x²) + e)``."""
    least = base.lower if floor is None else torch.maximum(base.lower, floor.lower)
    root = (least + curvature * x.mignitude.square()).sqrt() + shift
    of_offset = torch.where(offset.magnitude == 0, 0.0, offset.magnitude / root)
    of_gradient = torch.full_like(root, 1 / math.sqrt(curvature))
    if shift:
        of_gradient = torch.minimum(of_gradient, x.magnitude / shift)
    return of_offset + slope * torch.where(x.magnitude == 0, 0.0, of_gradient)


def _largest(
    offset: Tensor, slope: float, base: Interval, curvature: float, shift: float, x: Interval, floor: Interval | None
) -> Tensor:
    def at(point: Tensor) -> Tensor:
        numerator = offset + slope * point
        positive = numerator >= 0
        below = torch.where(positive, base.lower, base.upper)
        least = None if floor is None else torch.where(positive, floor.lower, floor.upper)
        return numerator / _root(below, curvature, shift, point, least)

    ends = torch.maximum(at(x.lower), at(x.upper))
    peak = _peak(offset, slope, base.lower, curvature, shift)
    if floor is not None:
        peak = torch.maximum(peak, (floor.lower - base.lower).clamp(min=0).sqrt() / math.sqrt(curvature))
    inside = torch.minimum(torch.maximum(peak, x.lower), x.upper)
    return torch.where(offset > 0, torch.maximum(ends, at(inside)), ends)


def _root(base: Tensor, curvature: float, shift: float, x: Tensor, floor: Tensor | None) -> Tensor:
    total = base + curvature * x.square()
    return (total if floor is None else torch.maximum(total, floor)).sqrt() + shift


def _peak(offset: Tensor, slope: float, base: Tensor, curvature: float, shift: float) -> Tensor:
    """Return x*, infinite if f rises everywhere.

    With ``r = a e / (A √b)`` and ``w = a √V / (A √b)``, which have no unit: gradients of any size neither overflow nor
    underflow on the way, as their squares and cubes do.

        x* = √(V / b) (w + r √(1 - r² + w²)) / (1 - r²)
    """
    root = math.sqrt(curvature)
    unit = slope / (torch.where(offset > 0, offset, 1.0) * root)
    shifted, spread = shift * unit, base.sqrt() * unit
    falls = (offset > 0) & (shifted < 1)
    rest = torch.where(falls, (1 - shifted) * (1 + shifted), 1.0)
    top = spread + shifted * torch.hypot(rest.sqrt(), spread)
    return torch.where(falls, base.sqrt() / root * (top / rest), torch.inf)
