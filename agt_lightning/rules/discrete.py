"""Element-wise calls on integers and booleans, such as labels that count from 1 and tests for one class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.capture.graph import Reference, map_references
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.rules.base import Rule, Site, alignment_problem, name_of
from agt_lightning.rules.roundings import EXACT, Roundings
from agt_lightning.rules.values import Value, as_interval

_aten = torch.ops.aten

DISCRETE = frozenset(
    {
        _aten.abs.default,
        _aten.add.Tensor,
        _aten.clamp.default,
        _aten.clamp_max.default,
        _aten.clamp_min.default,
        _aten.div.Tensor_mode,
        _aten.eq.Scalar,
        _aten.floor_divide.default,
        _aten.logical_not.default,
        _aten.max.other,
        _aten.maximum.default,
        _aten.min.other,
        _aten.minimum.default,
        _aten.mul.Tensor,
        _aten.ne.Scalar,
        _aten.neg.default,
        _aten.pow.Tensor_Scalar,
        _aten.remainder.Scalar,
        _aten.rsub.Scalar,
        _aten.square.default,
        _aten.sub.Tensor,
    }
)
"""Overloads that `DiscreteFunction` is for, if their result is discrete."""


@dataclass(frozen=True)
class DiscreteFunction(Rule):
    """An element-wise call with a discrete result; exact on data that are fixed.

    Labels that can be flipped stay labels: a flip to any class reaches at most all classes of the result, and
    ``targets`` and ``sources`` become their images.

    Args:
        numbers: the rule for numbers that can move by a radius; None if there is none.
    """

    numbers: Rule | None

    def roundings(self, site: Site) -> Roundings:
        """None: integers that floating point numbers stand for are exact."""
        return EXACT

    def problem(self, site: Site) -> str | None:
        """Refuse calls on predictions, whose result jumps, and broadcasts that pair different samples."""
        if any(site.trainable):
            return f"`{name_of(site.call)}` at {site.call.source} makes predictions discrete. Leave it out of the loss."
        return alignment_problem(site)

    def forward(self, site: Site, inputs: Sequence[Value]) -> Value:
        """The call itself, on the integers that there are."""
        discrete = [value for value in inputs if not isinstance(value, Interval)]
        if len(discrete) < len(inputs):
            return self._of_numbers(site, inputs)
        tensors = [value.index if isinstance(value, ClassLabels) else value for value in discrete]
        result = _call(site, tensors)
        flippable = [n for n, value in enumerate(discrete) if isinstance(value, ClassLabels) and value.flippable]
        if not flippable:
            return result
        if len(flippable) > 1 or any(tensor.numel() > 1 for n, tensor in enumerate(tensors) if n != flippable[0]):
            raise UncertifiableError(
                [
                    f"`{name_of(site.call)}` at {site.call.source} combines class labels that can be flipped with "
                    "other tensors. Compute the label in the data set."
                ]
            )
        labels = discrete[flippable[0]]
        assert isinstance(labels, ClassLabels)
        sources, targets = (
            _images(site, tensors, flippable[0], classes) for classes in (labels.sources, labels.targets)
        )
        return ClassLabels(result, flippable=True, sources=sources, targets=targets)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """The gradient of the rule for numbers; integers have none."""
        return [None] * len(inputs) if self.numbers is None else self.numbers.backward(site, grad, inputs, output)

    def _of_numbers(self, site: Site, inputs: Sequence[Value]) -> Value:
        # Sums of booleans are no sums of zeros and ones.
        if self.numbers is None or site.call.dtype in (torch.uint8, torch.bool):
            raise UncertifiableError(
                [
                    f"`{name_of(site.call)}` at {site.call.source} reads numbers that can move, or are rounded, as "
                    "discrete ones. Compute its result in the data set."
                ]
            )
        result = as_interval(self.numbers.forward(site, inputs))
        for value in (*inputs, result):  # a constant can be of a wider type than the result
            if not isinstance(value, ClassLabels):
                require_in_range(site, as_interval(value))
        return result.mapped(torch.round)  # a power as it is computed may be off by a rounding


def require_in_range(site: Site, value: Interval) -> None:
    """Raise if some number within the bounds is none of the integers or booleans that a call returns."""
    dtype = site.call.dtype
    if dtype.is_floating_point:
        return
    least, largest = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if bool(((value.lower < least) | (value.upper > largest)).any()):
        raise UncertifiableError(
            [
                f"`{name_of(site.call)}` at {site.call.source} can leave the range of {dtype}, where integers wrap "
                "around. Use a wider type in the data set."
            ]
        )


def _images(
    site: Site, tensors: Sequence[Tensor], position: int, classes: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """Return what the call makes of some classes in place of the labels at this position; None for all."""
    if classes is None:
        return None
    labels = tensors[position]
    replaced = [tensor.flatten() for tensor in tensors]
    replaced[position] = torch.tensor(classes, dtype=labels.dtype, device=labels.device)
    return tuple(int(image) for image in _call(site, replaced).flatten().tolist())


def _call(site: Site, tensors: Sequence[Tensor]) -> Tensor:
    """Apply the call to these tensors."""
    supply = iter(tensors)

    def next_tensor(reference: Reference) -> Tensor:
        return next(supply)

    arguments = {name: map_references(argument, next_tensor) for name, argument in site.call.arguments.items()}
    result: Tensor = site.call.op(**arguments)
    return result
