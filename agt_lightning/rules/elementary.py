"""The roundings of functions of one number: how far torch's kernels are from a function and from its derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import multiply
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval
from agt_lightning.rules.roundings import Roundings
from agt_lightning.rules.values import Value, as_interval

if TYPE_CHECKING:
    from agt_lightning.rules.base import Rule, Site

Scale = Callable[[Tensor], Tensor]
"""A function of the largest magnitude of x that an absolute error is relative to; it rises."""


def one(size: Tensor) -> Tensor:
    """Return ones: an error that does not grow with x."""
    return torch.ones_like(size)


@dataclass(frozen=True)
class KernelError:
    """How far a kernel can be from a function f: ``|fl(f(x)) - f(x)| <= γ_r |f(x)| + γ_a s(|x|)``.

    The numbers are upper bounds with margin on what was measured for torch's kernels (docs/floats.md, section 4.1).

    Args:
        relative: r, roundings relative to the value; two for each unit in the last place.
        absolute: a, roundings relative to s; zero if there is no such error.
        scale: s.
        underflows: how much larger than one underflow its share in the result can be.
    """

    relative: int
    absolute: int = 0
    scale: Scale = one
    underflows: float = 1.0

    def widened(self, value: Interval, x: Interval, arithmetic: Arithmetic) -> Interval:
        """Return bounds on a kernel's results from those of f.

        Args:
            value: bounds on f over x.
            x: the input.
            arithmetic: of the run and of the bounds, which call the same kernels.
        """
        wide = arithmetic.outward(value, self.relative) if self.relative else value
        slack = arithmetic.absolute() * self.underflows
        if not self.absolute:
            return wide.widened(slack, nonnegative=value.nonnegative) if self.relative else wide
        size = self.scale(x.magnitude) * arithmetic.relative(self.absolute) + slack
        return wide.widened(size, nonnegative=value.nonnegative)


@dataclass(frozen=True)
class ElementaryFunction(Roundings):
    """The roundings of a function of one number.

    Args:
        value: error of the function.
        slope: error of the derivative.
        input: roundings of x before a kernel compares it with a setting, such as ``β x`` with a threshold, or of that
            setting: where x is as close to a kink or jump, a run can take either side.
    """

    value: KernelError
    slope: KernelError
    input: int = 0

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        x = self._compared(as_interval(inputs[0]), arithmetic)
        return self.value.widened(as_interval(rule.forward(site, [x])), x, arithmetic)

    @override
    def backward(
        self,
        rule: Rule,
        site: Site,
        grad: Interval,
        inputs: Sequence[Value],
        output: Value,
        arithmetic: Arithmetic,
    ) -> Sequence[Interval | None]:
        x = self._compared(as_interval(inputs[0]), arithmetic)
        ones = Interval.point(torch.ones_like(x.lower), nonnegative=True)
        (slope,) = rule.backward(site, ones, [x], output)
        assert slope is not None
        towards = multiply(grad, self.slope.widened(slope, x, arithmetic))
        return [arithmetic.clear_of_underflow(arithmetic.outward(towards, 2))]

    def _compared(self, x: Interval, arithmetic: Arithmetic) -> Interval:
        return arithmetic.outward(x, self.input) if self.input else x
