"""Changes of shape. They move elements and compute nothing, so their bounds are exact.

A value with a sample axis keeps it in front; the size of that axis is read from the value, never from the call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.rounding import unit_roundoff
from agt_lightning.rules.base import ElementwiseRule, Rule, Site, name_of
from agt_lightning.rules.roundings import EXACT, Roundings
from agt_lightning.rules.values import Value, as_interval

_aten = torch.ops.aten

RESHAPES = (
    _aten.flatten.using_ints,
    _aten.reshape.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.unflatten.int,
    _aten.unsqueeze.default,
    _aten.view.default,
    _aten._unsafe_view.default,
)
"""Overloads that `Reshape` is for: they only change the shape of a sample."""

CASTS = (_aten.to.dtype, _aten.to.dtype_layout, _aten._to_copy.default)
"""Overloads that `Cast` is for: they only change the type of numbers."""


class Reshape(ElementwiseRule):
    """``view``, ``reshape``, ``flatten``, ``squeeze``, ``unsqueeze``: the same elements in the same order."""

    def roundings(self, site: Site) -> Roundings:
        """None."""
        return EXACT

    def problem(self, site: Site) -> str | None:
        """Refuse a change of axis 0; if that is kept, each sample keeps its elements, since their order is kept."""
        before, after = site.shapes[0], site.call.shape
        if not site.has_samples or (after and after[0] == before[0]):
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} turns shape {before} into {after} and loses the samples' "
            "axis. Keep the batch as first axis (`x.flatten(1)`, `.squeeze(-1)` instead of `.squeeze()`)."
        )

    def forward(self, site: Site, inputs: Sequence[Value]) -> Value:
        """The input in its new shape; a ball around it keeps its norm."""
        shape = site.call.shape

        def reshape(tensor: Tensor) -> Tensor:
            return tensor.reshape(tensor.shape[0], *shape[1:]) if site.has_samples else tensor.reshape(shape)

        result = map_value(inputs[0], reshape)
        ball = inputs[0].ball if isinstance(inputs[0], Interval) else None
        if ball is None or not site.has_samples:
            return result
        bounds = as_interval(result)
        return Interval.trusted(bounds.lower, bounds.upper, nonnegative=bounds.nonnegative, ball=ball.map(reshape))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """The gradient in the input's shape."""
        shape = as_interval(inputs[0]).shape
        full = shape if site.has_samples else (grad.shape[0], *shape)
        return [grad.rearranged(lambda bound: bound.reshape(full))]


@dataclass(frozen=True)
class CastRoundings(Roundings):
    """The rounding of a change of type: monotone, so the ends of an interval are rounded as a run rounds numbers."""

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        output = rule.forward(site, inputs)
        return arithmetic.stored(output) if isinstance(output, Interval) else output

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
        """Round the gradient once, to single precision at least: the type before the change is not recorded."""
        single = None if arithmetic.run is None else max((arithmetic.run, torch.float32), key=unit_roundoff)
        wide = Arithmetic(single, arithmetic.own).outward(grad)
        return rule.backward(site, wide, inputs, output)


class Cast(ElementwiseRule):
    """Changes of type. Between floating point types they do nothing: bounds are about real numbers.

    From integers to floating point they are exact.
    """

    def roundings(self, site: Site) -> Roundings:
        """One, if a type is narrower."""
        return CastRoundings()

    def forward(self, site: Site, inputs: Sequence[Value]) -> Value:
        """The input; discrete data become numbers if the program casts them to a floating point type."""
        value = inputs[0]
        if isinstance(value, Interval):
            return value if site.call.dtype.is_floating_point else _truncated(site, value)
        if not site.call.dtype.is_floating_point:
            return value.to(site.call.dtype)
        return as_interval(value)

    def problem(self, site: Site) -> str | None:
        """Accept every call: a cast is element-wise."""
        return None

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """The gradient, unchanged."""
        return [grad]


def _truncated(site: Site, value: Interval) -> Tensor:
    """Return fixed data as integers; raise for data that an adversary or the training can change."""
    if not value.is_point:
        raise UncertifiableError(
            [
                f"`{name_of(site.call)}` at {site.call.source} truncates values that can move to integers, which has "
                "no bounds. Convert them in the data set."
            ]
        )
    return value.lower.to(site.call.dtype)


class Detach(Cast):
    """``detach``: the value, without its gradient."""

    def takes_parameters(self, site: Site) -> bool:
        """Refuse parameters, whose bounds would count as fixed numbers."""
        return False

    def roundings(self, site: Site) -> Roundings:
        """None."""
        return EXACT

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """No gradient flows."""
        return [None]


class OneHot(Rule):
    """``one_hot`` of class labels: the interval hull of all reachable unit vectors."""

    def roundings(self, site: Site) -> Roundings:
        """None."""
        return EXACT

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """Bounds of shape (b, ..., classes)."""
        labels = inputs[0]
        if isinstance(labels, Tensor):
            labels = ClassLabels(labels)
        if not isinstance(labels, ClassLabels):
            raise UncertifiableError([no_classes(site)])
        return labels.one_hot(site.call.shape[-1], torch.float64)


def no_classes(site: Site) -> str:
    """Return why a call has no bounds that gets numbers with bounds where it needs classes."""
    return (
        f"`{name_of(site.call)}` at {site.call.source} gets labels that were computed by calls without bounds on "
        "classes, such as `torch.where`. Compute them in the data set."
    )


def map_value(value: Value, function: Callable[[Tensor], Tensor]) -> Value:
    """Apply a change of shape to any kind of value."""
    if isinstance(value, Interval):
        return value.rearranged(function)
    if isinstance(value, ClassLabels):
        return value.map(function)
    return function(value)
