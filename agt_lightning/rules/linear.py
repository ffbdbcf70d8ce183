"""Linear layers: the rule that everything else is built around."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from agt_lightning.arithmetic import ball_product, matmul
from agt_lightning.arithmetic.order import uncrossed
from agt_lightning.gradients import Elementwise, FactoredGradient, OuterProduct
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, Value, as_interval, map_bounds, name_of


class Linear(Rule):
    """``aten.linear``: y = z Wᵀ + β for z of shape (b, ..., k) and W of shape (o, k).

    Forward and backward are exact interval products; the weight's gradient is the outer product of section 3.4.
    """

    is_contraction = True

    def problem(self, site: Site) -> str | None:
        """The input carries the samples, weight and bias do not."""
        shared_matrix = not any(site.samples[1:]) and len(site.shapes[1]) == 2
        if site.samples[0] and shared_matrix and len(site.shapes[0]) > 1:
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} does not apply one weight to each sample (input shape "
            f"{site.shapes[0]}). Keep the batch on the first axis and the features on the last."
        )

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``z Wᵀ + β``; for inputs in a ball, intersected with the dual-norm bound."""
        operands = [as_interval(value) for value in inputs]
        if all(operand.is_point for operand in operands):
            return Interval.point(F.linear(*(operand.lower for operand in operands)))
        z, weight = operands[:2]
        product = matmul(_flat(z), weight)
        if z.ball is not None and z.ball.scale.ndim == 1:
            around = ball_product(z.ball, weight)
            product = uncrossed(torch.maximum(product.lower, around.lower), torch.minimum(product.upper, around.upper))
        if len(operands) == 3:
            product = product + operands[2]
        return map_bounds(product, lambda bound: bound.unflatten(0, z.shape[:-1]))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``∂L/∂z = d W``; for d that adds up to zero intersected with ``d (W - 1 m)``, which is the same."""
        weight = as_interval(inputs[1])
        product = matmul(_flat(grad), _transposed(weight))
        if grad.balanced and grad.lower.ndim == 2 and not product.is_point:
            apart = matmul(grad, _transposed(_less_median(weight)))
            product = uncrossed(torch.maximum(product.lower, apart.lower), torch.minimum(product.upper, apart.upper))
        gradient = map_bounds(product, lambda bound: bound.unflatten(0, grad.shape[:-1]))
        return [gradient, *[None] * (len(inputs) - 1)]

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """``∂L/∂W = Σ d ⊗ z`` and ``∂L/∂β = Σ d`` over positions."""
        if position == 2:
            flat = grad.lower.ndim == 2
            return Elementwise(grad if flat else map_bounds(_positions(grad), lambda bound: bound.sum(dim=1)))
        return OuterProduct(_positions(grad), _positions(as_interval(inputs[0])))


class MatrixProduct(Linear):
    """``aten.matmul`` and ``aten.mm``: y = z W for a shared W of shape (k, o), as in ``x @ self.weight``."""

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``z W``."""
        return super().forward(site, [inputs[0], _transposed(as_interval(inputs[1]))])

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``∂L/∂z = d Wᵀ``."""
        return super().backward(site, grad, [inputs[0], _transposed(as_interval(inputs[1]))], output)

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """``∂L/∂W = Σ z ⊗ d`` over positions."""
        return OuterProduct(_positions(as_interval(inputs[0])), _positions(grad))


def _less_median(weight: Interval) -> Interval:
    """``W - 1 m`` for the median m of each column, which makes ``Σ |W - m|`` least."""
    median = weight.center.median(dim=0).values
    return map_bounds(weight, lambda bound: bound - median)


def _transposed(matrix: Interval) -> Interval:
    return map_bounds(matrix, lambda bound: bound.T, nonnegative=matrix.nonnegative)


def _flat(value: Interval) -> Interval:
    """(b, ..., k) as (b t, k)."""
    return map_bounds(value, lambda bound: bound.reshape(-1, bound.shape[-1]), nonnegative=value.nonnegative)


def _positions(value: Interval) -> Interval:
    """(b, ..., k) as (b, t, k)."""

    def reshape(bound: Tensor) -> Tensor:
        return bound.reshape(bound.shape[0], -1, bound.shape[-1])

    return map_bounds(value, reshape, nonnegative=value.nonnegative)
