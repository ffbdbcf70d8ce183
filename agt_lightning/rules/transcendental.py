"""Elementary functions that are no activations: sine and its kin, exponentials and logarithms of other bases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.interval import Interval
from agt_lightning.rules.base import Site
from agt_lightning.rules.elementary import ElementaryFunction, KernelError
from agt_lightning.rules.elementwise import Monotone, PiecewiseMonotone, PiecewiseMonotoneFunction

_RELATIVE = KernelError(12)
_UNIT = KernelError(12, 12)
_LN2, _LN10 = math.log(2), math.log(10)


@dataclass(frozen=True)
class Sinusoid(PiecewiseMonotoneFunction):
    """``±sin`` or ``±cos``: over an interval, its ends and each turn inside span the range.

    The turns lie at all ``crest + 2 π k``, with value 1, and half a period beside them, with value -1. Whether one is
    inside is decided with room for the rounding of its position: a turn just outside changes the range by no more
    than the square of that.

    Args:
        crest: a position where the function is 1.

    Example:
        >>> cosine = Sinusoid(torch.cos, crest=0.0)
        >>> cosine.over(None, Interval(torch.tensor([-0.5, 6.0]), torch.tensor([0.1, 10.0])))
        Interval(lower=tensor([ 0.8776, -1.0000]), upper=tensor([1., 1.]))
    """

    crest: float = 0.0

    @override
    def over(self, site: Site, x: Interval) -> Interval:
        function: Callable[[Tensor], Tensor] = self.function  # type: ignore[assignment]
        at_lower = function(x.lower)
        if x.is_point:
            return Interval.point(at_lower)
        at_upper = function(x.upper)
        lower = torch.where(self._reaches(x, self.crest + math.pi), -1.0, torch.minimum(at_lower, at_upper))
        upper = torch.where(self._reaches(x, self.crest), 1.0, torch.maximum(at_lower, at_upper))
        return Interval.trusted(lower, upper)

    @staticmethod
    def _reaches(x: Interval, position: float) -> Tensor:
        """Return whether ``position + 2 π k`` lies in each interval for some integer k, or next to it."""
        room = (1 + x.magnitude) * (8 * torch.finfo(x.dtype).eps)
        first = ((x.lower - room - position) / (2 * math.pi)).ceil()
        last = ((x.upper + room - position) / (2 * math.pi)).floor()
        return last >= first


def _sinusoid(value: Sinusoid, slope: Sinusoid) -> PiecewiseMonotone:
    return PiecewiseMonotone(value, slope, rounding=ElementaryFunction(_UNIT, _UNIT))


sine = _sinusoid(Sinusoid(torch.sin, crest=math.pi / 2), Sinusoid(torch.cos, crest=0.0))
"""``sin x`` with derivative ``cos x``."""

cosine = _sinusoid(Sinusoid(torch.cos, crest=0.0), Sinusoid(lambda x: -torch.sin(x), crest=-math.pi / 2))
"""``cos x`` with derivative ``-sin x``."""

arctangent = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.atan),
    PiecewiseMonotoneFunction(lambda x: 1 / (1 + x.square()), [(0.0, 1.0)], nonnegative=True),
    rounding=ElementaryFunction(_RELATIVE, _RELATIVE),
)
"""``arctan x`` with derivative ``1 / (1 + x²)``, largest at zero."""

hyperbolic_sine = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.sinh),
    PiecewiseMonotoneFunction(torch.cosh, [(0.0, 1.0)], nonnegative=True),
    rounding=ElementaryFunction(_RELATIVE, _RELATIVE),
)
"""``sinh x`` with derivative ``cosh x``, least at zero."""

hyperbolic_cosine = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.cosh, [(0.0, 1.0)], nonnegative=True),
    PiecewiseMonotoneFunction(torch.sinh),
    rounding=ElementaryFunction(_RELATIVE, _RELATIVE),
)
"""``cosh x``, least at zero, with derivative ``sinh x``."""

inverse_hyperbolic_sine = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.asinh),
    PiecewiseMonotoneFunction(
        lambda x: 1 / torch.hypot(x, torch.ones_like(x)),
        [(0.0, 1.0)],
        nonnegative=True,
    ),
    rounding=ElementaryFunction(_RELATIVE, KernelError(12, 1)),
)
"""``arsinh x`` with derivative ``1 / √(1 + x²)``, largest at zero; torch's is zero where x² is infinite."""

exponential_minus_one = Monotone(
    function=torch.expm1,
    derivative=torch.exp,
    rounding=ElementaryFunction(_RELATIVE, _UNIT),
)
"""``exp x - 1``; kernels compute the derivative as the result plus one."""

power_of_two = Monotone(
    function=torch.exp2,
    derivative=lambda x: _LN2 * torch.exp2(x),
    nonnegative=True,
    rounding=ElementaryFunction(_RELATIVE, _RELATIVE),
)
"""``2ˣ`` with derivative ``2ˣ log 2``."""


def _above_zero(x: Interval) -> Tensor:
    return x.lower > 0


def _above_minus_one(x: Interval) -> Tensor:
    return x.lower > -1


logarithm_of_successor = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.log1p),
    PiecewiseMonotoneFunction(lambda x: 1 / (1 + x), nonnegative=True),
    _above_minus_one,
    rounding=ElementaryFunction(_RELATIVE, KernelError(8)),
)
"""``log(1 + x)`` of values above -1; the sum in the derivative is rounded relatively."""

binary_logarithm = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.log2),
    PiecewiseMonotoneFunction(lambda x: 1 / (_LN2 * x), nonnegative=True),
    _above_zero,
    rounding=ElementaryFunction(KernelError(12, 4), KernelError(12)),
)
"""``log₂ x`` of positive values."""

decimal_logarithm = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.log10),
    PiecewiseMonotoneFunction(lambda x: 1 / (_LN10 * x), nonnegative=True),
    _above_zero,
    rounding=ElementaryFunction(KernelError(12, 4), KernelError(12)),
)
"""``log₁₀ x`` of positive values."""

complementary_error_function = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.erfc, nonnegative=True),
    PiecewiseMonotoneFunction(
        lambda x: torch.exp(-x.square()) * (-2 / math.sqrt(math.pi)), [(0.0, -2 / math.sqrt(math.pi))]
    ),
    rounding=ElementaryFunction(_UNIT, KernelError(12, 24)),
)
"""``1 - erf x`` with derivative ``-2 exp(-x²) / √π``, least at zero."""
