"""Comparisons of labels with numbers, such as the levels of ordinal regression; of predictions there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._ops import OpOverload

from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.rules.base import Rule, Site, alignment_problem, name_of
from agt_lightning.rules.roundings import EXACT, Roundings
from agt_lightning.rules.values import Value, as_interval

_aten = torch.ops.aten

_RELATIVE = 2.0**-8
_ABSOLUTE = 2.0**-23
"""What the conversion of two operands to one type moves a number by at most, down to half precision."""


@dataclass(frozen=True)
class Comparison(Rule):
    """``a > b`` and its like, as zeros and ones; of data alone.

    Both operands are converted to one type before they are compared. That is monotone, so a run finds ``a <= b`` if it
    holds for the numbers, but ``a > b`` for certain only if they are farther apart than their rounding.

    Args:
        less: whether the smaller operand is the first one.
        strict: whether equal operands give zero.
    """

    less: bool
    strict: bool

    def roundings(self, site: Site) -> Roundings:
        """None: the rounding of operands is covered."""
        return EXACT

    def problem(self, site: Site) -> str | None:
        """Refuse comparisons of predictions, whose result jumps, and broadcasts that pair different samples."""
        if any(site.trainable):
            return f"`{name_of(site.call)}` at {site.call.source} makes predictions discrete. Leave it out of the loss."
        return alignment_problem(site)

    def forward(self, site: Site, inputs: Sequence[Value]) -> Value:
        """The comparison itself of data that are fixed, and otherwise between zero and one."""
        tensors = [_fixed(value) for value in inputs]
        other = None if len(inputs) > 1 else site["other"]
        fixed = [tensor for tensor in tensors if tensor is not None]
        if len(fixed) == len(inputs):
            compared: Tensor = site.call.op(*fixed, *([] if other is None else [other]))
            return compared
        _require_no_wrapping(site)
        first = as_interval(inputs[0])
        second = as_interval(inputs[1]) if other is None else _number(site.number("other"))
        large, small = (second, first) if self.less else (first, second)
        certain = _apart(large.lower, small.upper)
        impossible = large.upper <= small.lower
        if not self.strict:
            certain, impossible = large.lower >= small.upper, _apart(small.lower, large.upper)
        return Interval.trusted(certain.double(), (~impossible).double(), nonnegative=True)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """None: data have no gradient."""
        return [None] * len(inputs)


def _fixed(value: Value) -> Tensor | None:
    """Return what no run can change, as it is in the data."""
    if isinstance(value, Interval):
        return None
    if isinstance(value, ClassLabels):
        return None if value.flippable else value.index
    return value


def _require_no_wrapping(site: Site) -> None:
    """Raise if torch converts an operand to a type of integers that does not hold it: 300 becomes 44 in bytes."""
    if not site.types:
        return
    kinds, number = site.types, site.call.arguments["other"]
    tensors = [torch.empty(shape, dtype=kind, device="meta") for shape, kind in zip(site.shapes, kinds, strict=True)]
    other = number if isinstance(number, int | float) else tensors[-1]
    common = torch.result_type(tensors[0], other)
    if common.is_floating_point or common == torch.bool:
        return
    limits = torch.iinfo(common)
    ends = [(number, number)] if isinstance(number, int | float) else []
    ends += [(torch.iinfo(kind).min, torch.iinfo(kind).max) for kind in kinds if kind not in (common, torch.bool)]
    if any(least < limits.min or largest > limits.max for least, largest in ends):
        raise UncertifiableError(
            [
                f"`{name_of(site.call)}` at {site.call.source} compares labels that can change in {common}, where a "
                "number beyond its range wraps around to another one. Store the labels as int64 in the data set."
            ]
        )


def _number(number: float) -> Interval:
    return Interval.point(torch.tensor(number, dtype=torch.float64))


def _apart(large: Tensor, small: Tensor) -> Tensor:
    """Return where one number is larger than another, in any type that both are converted to."""
    large, small = large.double(), small.double()
    return large - small > _RELATIVE * (large.abs() + small.abs()) + 2 * _ABSOLUTE


COMPARISONS: dict[OpOverload, Comparison] = {
    _aten.ge.Scalar: Comparison(less=False, strict=False),
    _aten.ge.Tensor: Comparison(less=False, strict=False),
    _aten.gt.Scalar: Comparison(less=False, strict=True),
    _aten.gt.Tensor: Comparison(less=False, strict=True),
    _aten.le.Scalar: Comparison(less=True, strict=False),
    _aten.le.Tensor: Comparison(less=True, strict=False),
    _aten.lt.Scalar: Comparison(less=True, strict=True),
    _aten.lt.Tensor: Comparison(less=True, strict=True),
}
"""Rules by overload."""
