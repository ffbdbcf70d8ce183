"""Powers with constant exponents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning.arithmetic import multiply
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.rules.base import ElementwiseRule, Site, name_of
from agt_lightning.rules.elementary import ElementaryFunction, KernelError
from agt_lightning.rules.elementwise import PiecewiseMonotoneFunction
from agt_lightning.rules.roundings import Relative, Roundings
from agt_lightning.rules.values import Value, as_interval

_LARGEST_LOGARITHM = 745
"""Magnitude of log x for every positive x of every floating point type."""


class Power(ElementwiseRule):
    """``pow`` with a number p as exponent: ``x^p`` where that is real, with derivative ``p x^(p - 1)``; exact.

    Both are monotone on either side of zero, where they are zero for exponents above zero and poles for those below.
    Exponents that are no integers need ``x >= 0``, or ``x > 0`` where the derivative has a pole; negative ones need
    values on one side of zero.
    """

    def roundings(self, site: Site) -> Roundings:
        """Products for squares; else those of the kernel, and an exponent that is rounded to the type of x.

        ``x^(p (1 + δ)) = (x x^δ)^p``, and ``x^δ`` is off from one by at most δ times the largest logarithm.
        """
        exponent = site.number("exponent")
        if exponent in (1.0, 2.0):
            return Relative(2, 4)
        stored = float(torch.tensor(exponent, dtype=torch.float16)) == exponent
        return ElementaryFunction(KernelError(16), KernelError(24), input=0 if stored else 2 * _LARGEST_LOGARITHM)

    def problem(self, site: Site) -> str | None:
        """Accept every number but zero, at which torch's derivative is zero even where x^0 is not."""
        if site.number("exponent") != 0 and math.isfinite(site.number("exponent")):
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} has exponent {site['exponent']}. Write the constant itself."
        )

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``[mig², mag²]`` for squares, the range of ``x^p`` else."""
        value, exponent = as_interval(inputs[0]), site.number("exponent")
        if exponent == 1.0:
            return value
        if exponent == 2.0:
            return value.square()
        _require_defined(site, value, exponent)
        return _power(exponent).over(site, value)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``p x^(p - 1) g``."""
        value, exponent = as_interval(inputs[0]), site.number("exponent")
        if exponent == 1.0:
            return [grad]
        if exponent == 2.0:
            return [multiply(grad, value.scaled(2.0))]
        return [multiply(grad, _power(exponent - 1).over(site, value).scaled(exponent))]


class Square(Power):
    """``square``: x², the call without an exponent."""

    def roundings(self, site: Site) -> Roundings:
        """One product, and two of the gradient."""
        return Relative(2, 4)

    def problem(self, site: Site) -> str | None:
        """Accept every call."""
        return None

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``[mig², mag²]``."""
        return as_interval(inputs[0]).square()

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``2 x g``."""
        return [multiply(grad, as_interval(inputs[0]).scaled(2.0))]


def _power(exponent: float) -> PiecewiseMonotoneFunction:
    """Return ``x^p``, which turns at zero if at all."""
    even = exponent % 2 == 0

    def power(x: Tensor) -> Tensor:
        return x.pow(exponent)

    turns = [(0.0, 0.0)] if exponent > 0 else []
    return PiecewiseMonotoneFunction(power, turns, nonnegative=even or exponent % 1 != 0)


def _require_defined(site: Site, value: Interval, exponent: float) -> None:
    """Raise if ``x^p`` or its derivative is undefined or infinite for a value."""
    if exponent % 1 == 0:
        defined = value.lower.isfinite() if exponent > 0 else (value.lower > 0) | (value.upper < 0)
        needed = "values on one side of zero"
    else:
        defined = value.lower >= 0 if exponent > 1 else value.lower > 0
        needed = "values that are not negative" if exponent > 1 else "positive values"
    if not bool(defined.all()):
        raise UncertifiableError(
            [
                f"`{name_of(site.call)}` at {site.call.source} has exponent {exponent:g}, which needs {needed}, but "
                "poisoned runs can have others there. Add a positive constant, or clamp its input away from zero."
            ]
        )
