"""The rules for a program that runs in floating point arithmetic, in any order of summation.

The bounds are those in real arithmetic, widened by the rounding error of each result. Only the self-check of a training
run uses them, since a unit that is zero up to rounding may be on for the hardware and off in real arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff
from agt_lightning.rules.base import Rule, Site, Value, as_interval

_CALL_ROUNDINGS = 16
"""Roundings inside one element-wise call; sixteen cover exp, log and the few operations around them."""


@dataclass(frozen=True)
class Rounded(Rule):
    """A rule whose results also contain those of a floating point program.

    Args:
        rule: the rule in real arithmetic.
        dtype: floating point type of the program.
    """

    rule: Rule
    dtype: torch.dtype

    def problem(self, site: Site) -> str | None:
        """As the rule in real arithmetic."""
        return self.rule.problem(site)

    def forward(self, site: Site, inputs: Sequence[Value]) -> Value:
        """The rule's bounds, widened by the magnitude of all summands."""
        output = self.rule.forward(site, inputs)
        if not isinstance(output, Interval) or not site.has_samples:
            return output
        operands = [as_interval(value) for value in inputs]
        if self.rule.is_contraction:
            sizes = [Interval.point(operand.magnitude, nonnegative=True) for operand in operands]
            size = as_interval(self.rule.forward(site, sizes)).magnitude
        else:
            size = torch.maximum(output.magnitude, _largest_row(operands[0], output, site.samples[0]))
        return self._rounded(output, size, max(_longest(operand) for operand in operands))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """The rule's bounds, widened likewise."""
        gradients = self.rule.backward(site, grad, inputs, output)
        sizes: Sequence[Interval | None] = gradients
        if self.rule.is_contraction:
            magnitudes = [Interval.point(as_interval(value).magnitude, nonnegative=True) for value in inputs]
            sizes = self.rule.backward(site, Interval.point(grad.magnitude, nonnegative=True), magnitudes, output)
        terms = _longest(grad)
        return [
            None if gradient is None or size is None else self._rounded(gradient, size.magnitude, terms)
            for gradient, size in zip(gradients, sizes, strict=True)
        ]

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """The rule's factors; the aggregation accounts for the rounding of sums over samples."""
        return self.rule.parameter_gradient(site, position, grad, inputs)

    def _rounded(self, value: Interval, size: Tensor, terms: int) -> Interval:
        """Widen by rounding errors, which make no sum of nonnegative numbers negative."""
        slack = size * accumulated_roundoff(terms + _CALL_ROUNDINGS, self.dtype)
        return value.widened(slack, nonnegative=value.nonnegative)


def _longest(value: Interval) -> int:
    """The number of elements of one sample, which no sum of them exceeds in length."""
    return max(1, value.lower[0].numel()) if value.lower.ndim else 1


def _largest_row(operand: Interval, output: Interval, samples: bool) -> Tensor:
    """The largest entry of each sample's first operand, or of the one all samples share, broadcast to the output."""
    if not samples:
        return operand.magnitude.amax().expand_as(output.lower)
    largest = operand.magnitude.flatten(1).amax(dim=1) if operand.lower.ndim > 1 else operand.magnitude
    return largest.reshape(-1, *[1] * (output.lower.ndim - 1)).expand_as(output.lower)
