"""Interpolation between elements of an image: a linear map with nonnegative coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture.graph import map_references
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site
from agt_lightning.rules.roundings import Roundings
from agt_lightning.rules.values import Value, as_interval


class LinearUpsampling(Rule):
    """``upsample_linear``, ``upsample_bilinear`` and ``upsample_trilinear``; exact.

    Weights of the neighbors along each axis are computed from positions in the type of the image: in another type they
    are off by the rounding of a position.
    """

    def roundings(self, site: Site) -> Roundings:
        """Those of positions and of sums over neighbors."""
        return InterpolationRoundings()

    def problem(self, site: Site) -> str | None:
        """Accept every call: axes 0 and 1 stay as they are."""
        return None

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """Bounds are interpolated like values."""
        value = as_interval(inputs[0])
        return value.mapped(lambda bound: self.call(site, bound), nonnegative=value.nonnegative)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """Each element gets its share of the gradients around it."""
        shape = as_interval(inputs[0]).shape
        return [
            grad.mapped(
                lambda bound: _transpose(lambda x: self.call(site, x), shape, bound), nonnegative=grad.nonnegative
            )
        ]

    def call(self, site: Site, image: Tensor) -> Tensor:
        """Apply the call to another image."""
        arguments = {name: map_references(value, lambda _: image) for name, value in site.call.arguments.items()}
        result: Tensor = site.call.op(**arguments)
        return result


def _transpose(linear: Callable[[Tensor], Tensor], shape: torch.Size, gradient: Tensor) -> Tensor:
    """Apply the transpose of a linear map, whose coefficients are nonnegative."""
    with torch.enable_grad():
        image = gradient.new_zeros(()).expand(shape).requires_grad_()
        return torch.autograd.grad(linear(image), image, gradient)[0]


@dataclass(frozen=True)
class InterpolationRoundings(Roundings):
    """Positions are off by the rounding of numbers as large as the image, and weights by as much.

    The result is continuous in each position, with slope at most twice the largest element. An element's gradient
    takes part of the results within one element of it: their gradients add up to those of the elements around it.
    """

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Interval:
        output, image = as_interval(rule.forward(site, inputs)), as_interval(inputs[0])
        axes = tuple(range(2, image.lower.ndim))
        largest = image.magnitude.amax(dim=axes, keepdim=True)
        slack = largest * (2 * len(axes) * self._shift(site, arithmetic))
        return arithmetic.clear_of_underflow(arithmetic.outward(output.widened(slack), 2 ** len(axes) + 8), 8)

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
        assert isinstance(rule, LinearUpsampling)
        terms = torch.Size(site.call.shape[2:]).numel()
        (exact,) = rule.backward(site, arithmetic.outward(grad, terms + 8), inputs, output)
        assert exact is not None
        shape = as_interval(inputs[0]).shape
        axes = len(shape) - 2
        around = _around(_transpose(lambda x: rule.call(site, x), shape, grad.magnitude))
        wide = exact.widened(around * (2 * axes * self._shift(site, arithmetic) * (1 + 2.0**-20)))
        return [arithmetic.clear_of_underflow(wide, terms)]

    def _shift(self, site: Site, arithmetic: Arithmetic) -> float:
        """Return how far a position can be off."""
        return 1.0 * max(*site.shapes[0][2:], *site.call.shape[2:]) * arithmetic.relative(16)


def _around(image: Tensor) -> Tensor:
    """Return the sum over each element and its neighbors along and across the axes."""
    rank = image.ndim - 2
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[rank]
    result: Tensor = pool(F.pad(image, [1] * (2 * rank)), 3, stride=1) * 3**rank
    return result
