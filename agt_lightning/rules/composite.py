"""Functions of one number that programs write as several calls, with derivatives that are exact for the whole.

The chain rule multiplies bounds on the derivatives of the calls as if their arguments could move on their own. They
are functions of one x: for ``√(x² + c)`` it multiplies ``1 / 2√(x² + c)`` at its largest, at x = 0, by ``2 x`` at its
largest, elsewhere. The derivative of the whole function is bounded through its own turns instead.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic import multiply
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval
from agt_lightning.rules.activation import silu
from agt_lightning.rules.elementwise import PiecewiseMonotoneFunction, Turn

_CERTAIN = 80.0
"""A logit beyond which one of σ(x) and σ(-x) is smaller than the roundoff of every type."""


class Composite(ABC):
    """A function of one number x, element by element."""

    @property
    @abstractmethod
    def slope(self) -> PiecewiseMonotoneFunction:
        """The derivative."""

    @property
    def value(self) -> PiecewiseMonotoneFunction | None:
        """The function; None, the default, if bounds of its calls one after the other are exact."""
        return None

    @abstractmethod
    def rounded_slope(self, slope: Interval, x: Interval, uses: int, arithmetic: Arithmetic) -> Interval:
        """Return bounds on the factor by which a run multiplies a gradient of one on its way through all calls.

        Args:
            slope: bounds on the derivative in real arithmetic.
            x: as the run computes it.
            uses: number of gradients that the run adds up for x, those of this function among them.
            arithmetic: of the run and of the bounds.
        """

    def carried(self, size: Tensor) -> Tensor:
        """Return how much an underflow between two calls can grow until the last one, for each |x|; by default one."""
        return torch.ones_like(size)

    def range(self, x: Interval, arithmetic: Arithmetic) -> Interval | None:
        """Return bounds on the function; None if those of its calls are exact.

        Args:
            x: its argument.
            arithmetic: of the run and of the bounds.
        """
        if self.value is None:
            return None
        exact = self.value.over(None, x)  # type: ignore[arg-type]
        return arithmetic.clear_of_underflow(arithmetic.outward(exact, 16), 4)

    def towards(self, grad: Interval, x: Interval, uses: int, arithmetic: Arithmetic) -> Interval:
        """Return bounds on the gradient with respect to x.

        Args:
            grad: bounds on the gradient with respect to the result.
            x: bounds on the argument.
            uses: number of gradients that are added up for x, those of this function among them.
            arithmetic: of the run and of the bounds.
        """
        slope = self.slope.over(None, x)  # type: ignore[arg-type]
        lost = (self.carried(x.magnitude.double()) * arithmetic.absolute(8)).to(x.dtype)
        factor = self.rounded_slope(slope, x, uses, arithmetic).widened(lost)
        return arithmetic.outward(multiply(grad, factor), 2).widened(lost)


@dataclass(frozen=True)
class FunctionOfQuadratic(Composite):
    """A power or the logarithm of ``s = a x² + c`` with a, c > 0; derivative ``f a x s⁻ᵏ``.

    It turns at ``±√(c / (a (2 k - 1)))`` for k > 1/2 and rises or falls everywhere for k = 1/2. Square root: f = 1,
    k = 1/2 (the loss of Charbonnier, the pseudo-Huber loss); logarithm: 2, 1 (Cauchy's loss); reciprocal: -2, 2;
    reciprocal root: -1, 3/2.

    Args:
        scale: a.
        constant: c.
        factor: f.
        exponent: k.

    Example:
        >>> distance, real = FunctionOfQuadratic(1.0, 1.0, 1.0, 0.5), Arithmetic(None, torch.float32)
        >>> one = Interval.point(torch.ones(1))
        >>> distance.towards(one, Interval(torch.tensor([-1.0]), torch.tensor([1.0])), 1, real)
        Interval(lower=tensor([-0.7071]), upper=tensor([0.7071]))
    """

    scale: float
    constant: float
    factor: float
    exponent: float

    @property
    def slope(self) -> PiecewiseMonotoneFunction:
        """``f a x s⁻ᵏ``, by a distance that does not overflow."""
        return PiecewiseMonotoneFunction(lambda x: self._slope(x), turns=self._turns())

    def _slope(self, x: Tensor) -> Tensor:
        root = torch.hypot(x * math.sqrt(self.scale), torch.full_like(x, math.sqrt(self.constant)))
        return self.factor * self.scale * x * root ** (-2 * self.exponent)

    def _turns(self) -> list[Turn]:
        if self.exponent <= 0.5:
            return []
        point = math.sqrt(self.constant / (self.scale * (2 * self.exponent - 1)))
        value = float(self._slope(torch.tensor(point, dtype=torch.float64)))
        return [(-point, -value), (point, value)]

    def rounded_slope(self, slope: Interval, x: Interval, uses: int, arithmetic: Arithmetic) -> Interval:
        """Each of its calls is right relatively, as c keeps s from zero; an underflow of x² counts against c.

        ``s`` passes through six roundings, those of c and a among them, and s⁻ᵏ through twice as many at most.
        """
        underflow = (1 + self.scale) * arithmetic.absolute(4) / self.constant
        return slope.widened_relatively(arithmetic.relative(36) + underflow)

    def carried(self, size: Tensor) -> Tensor:
        """The factors 2 x, a and those of the outer function's derivative, at most 1 / c²."""
        return (1 + 2 * size) * (1 + self.scale) * (1 + 1 / self.constant) ** 2


@dataclass(frozen=True)
class Swish(Composite):
    """``x σ(x)``; see `agt_lightning.rules.activation.silu`.

    Example:
        >>> x = Interval(torch.tensor([-3.0]), torch.tensor([1.0]))
        >>> Swish().range(x, Arithmetic(None, torch.float32))
        Interval(lower=tensor([-0.2785]), upper=tensor([0.7311]))
    """

    @property
    def slope(self) -> PiecewiseMonotoneFunction:
        """``σ(x) (1 + x σ(-x))``."""
        return silu.slope

    @property
    def value(self) -> PiecewiseMonotoneFunction:
        """``x σ(x)``."""
        return silu.value

    def rounded_slope(self, slope: Interval, x: Interval, uses: int, arithmetic: Arithmetic) -> Interval:
        """The run adds ``g σ(x)`` and ``g x σ(x) (1 - σ(x))`` among all gradients of x; both are below ``1 + |x|``."""
        return slope.widened((1 + x.magnitude) * arithmetic.relative(32 + uses))


@dataclass(frozen=True)
class LogSigmoid(Composite):
    """``log σ(x)``, or ``log(1 - σ(x)) = log σ(-x)``.

    Args:
        sign: 1 or -1, the sign of x.

    Example:
        >>> one, real = Interval.point(torch.ones(1).double()), Arithmetic(None, torch.float64)
        >>> LogSigmoid(-1).towards(one, Interval(torch.zeros(1).double(), torch.ones(1).double()), 1, real)
        Interval(lower=tensor([-0.7311], dtype=torch.float64), upper=tensor([-0.5000], dtype=torch.float64))
    """

    sign: int

    @property
    def slope(self) -> PiecewiseMonotoneFunction:
        """``σ(-x)`` and ``-σ(x)``."""
        return PiecewiseMonotoneFunction(lambda x: self.sign * (-self.sign * x).sigmoid())

    def rounded_slope(self, slope: Interval, x: Interval, uses: int, arithmetic: Arithmetic) -> Interval:
        """A run computes ``((1 - p) p) / p`` or ``((1 - p) p) / (1 - p)``, where 1 - p is right up to u.

        With ``q = 1 - p``, u is relative to q by ``u / q <= 2 u exp(|x|)``.
        """
        off = torch.exp(x.magnitude.clamp(max=_CERTAIN)) * 2 if self.sign < 0 else torch.ones_like(x.lower)
        return slope.widened(off * arithmetic.relative(32))
