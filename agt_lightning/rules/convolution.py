"""Convolutions and transposed convolutions in one, two and three dimensions.

A transposed convolution is the adjoint of a convolution with the same windows, so each one's backward pass is the
other's forward pass and both weights have the same gradient, with input and output gradient exchanged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from agt_lightning.arithmetic.convolution import Windows, ball_convolve, convolve, convolve_adjoint
from agt_lightning.arithmetic.order import intersection
from agt_lightning.gradients import Elementwise, FactoredGradient, PatchProduct
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.roundings import Contraction, Roundings
from agt_lightning.rules.values import Value, as_interval


@dataclass(frozen=True)
class Convolution(Rule):
    """``y = W * z + β`` for z of shape (b, c, *image) and W of shape (o, c/g, *kernel), or transposed.

    Forward, backward and the weight's gradient are exact interval products.

    Args:
        transposed: whether the call is a transposed convolution; None if an argument of the call decides.
    """

    transposed: bool | None = False

    def roundings(self, site: Site) -> Roundings:
        """A window's entries in all channels of a group, forward and backward; positions in the weight's gradient."""
        window = math.prod(site.shapes[1][2:])
        first, second = site.shapes[1][0] // site.integer("groups"), site.shapes[1][1]
        terms, gradient_terms = (first, second) if self._is_transposed(site) else (second, first)
        positions = max(math.prod(site.call.shape[2:]), math.prod(site.shapes[0][2:]))
        return Contraction(terms * window, gradient_terms * window, positions)

    def problem(self, site: Site) -> str | None:
        """Refuse a weight or bias with samples, and an input without them or without channels."""
        batched = len(site.shapes[0]) == len(site.shapes[1])
        if site.samples[0] and batched and not any(site.samples[1:]):
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} does not apply one kernel to each sample (input shape "
            f"{site.shapes[0]}, kernel shape {site.shapes[1]}). Give it inputs of shape (batch, channels, ...), for "
            "example with `.unsqueeze(1)`, and a kernel that does not depend on the batch."
        )

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``W * z + β``; for inputs in a ball, the convolution is intersected with the dual-norm bound."""
        product = self._product(site, as_interval(inputs[0]), as_interval(inputs[1]))
        if len(inputs) < 3:
            return product
        shape = (-1, *[1] * (len(site.call.shape) - 2))
        bias = as_interval(inputs[2])
        return product + bias.rearranged(lambda bound: bound.reshape(shape))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``∂L/∂z``: the adjoint of the forward pass, applied to d."""
        adjoint = convolve if self._is_transposed(site) else convolve_adjoint
        return [adjoint(grad, as_interval(inputs[1]), self._windows(site)), *[None] * (len(inputs) - 1)]

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """``∂L/∂W = Σ_t d ⊗ patch`` and ``∂L/∂β = Σ_t d``."""
        if position == 2:
            return Elementwise(grad.mapped(_sum_of_positions, nonnegative=grad.nonnegative))
        outputs, image = grad, as_interval(inputs[0])
        if self._is_transposed(site):
            outputs, image = image, outputs
        return PatchProduct(outputs, image, self._windows(site))

    def _product(self, site: Site, z: Interval, weight: Interval) -> Interval:
        windows = self._windows(site)
        if self._is_transposed(site):
            return convolve_adjoint(z, weight, windows)
        product = convolve(z, weight, windows)
        if z.ball is None or z.ball.scale.shape != z.shape[1:]:
            return product
        # Patches that no perturbation changes have width zero up to rounding.
        return intersection(product, ball_convolve(z.ball, weight, windows))

    def _is_transposed(self, site: Site) -> bool:
        return bool(site["transposed"]) if self.transposed is None else self.transposed

    def _windows(self, site: Site) -> Windows:
        kernel = site.shapes[1][2:]
        stride, dilation = sizes(site, "stride", len(kernel)), sizes(site, "dilation", len(kernel))
        image, positions = site.shapes[0][2:], site.call.shape[2:]
        if self._is_transposed(site):
            image, positions = positions, image
        before = _padding_before(site, kernel, dilation)
        return Windows(kernel, stride, dilation, before, image, positions, site.integer("groups"))


def sizes(site: Site, name: str, rank: int) -> tuple[int, ...]:
    """Return an argument that has one number per spatial axis, or one for all."""
    value = site[name]
    if isinstance(value, int):
        return (value,) * rank
    assert isinstance(value, list | tuple)
    numbers = tuple(int(number) for number in value)
    return numbers * rank if len(numbers) == 1 else numbers


def _padding_before(site: Site, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Padding in front; ``same`` adds an odd one behind."""
    if site["padding"] == "same":
        return tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    if site["padding"] == "valid":
        return (0,) * len(kernel)
    return sizes(site, "padding", len(kernel))


def _sum_of_positions(bound: Tensor) -> Tensor:
    return bound.flatten(2).sum(dim=2)
