"""Linear layers, with a weight that is the same for all samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from agt_lightning.arithmetic import ball_product, product
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.arithmetic.order import intersection
from agt_lightning.capture.graph import JOINT_TERMS
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.gradients import Elementwise, FactoredGradient, OuterProduct
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.roundings import Contraction, Roundings
from agt_lightning.rules.values import Value, as_interval


@dataclass(frozen=True)
class LinearRoundings(Contraction):
    """A contraction whose gradient may have entries that add up to zero, in a run up to rounding."""

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
        """Intersect with ``d (W - 1 m)``, widened by ``|m|`` times what the entries of d add up to in a run."""
        assert isinstance(rule, Linear)
        plain = Interval.trusted(grad.lower, grad.upper, nonnegative=grad.nonnegative)
        gradient, *others = super().backward(rule, site, plain, inputs, output, arithmetic)
        if not grad.balanced or grad.lower.ndim != 2 or grad.is_point or gradient is None:
            return [gradient, *others]
        roundings = self.gradient_terms + 8
        weight, median = less_median(arithmetic.outward(rule.weight(inputs), roundings))
        rest = arithmetic.relative(roundings) * grad.magnitude.sum(dim=1, keepdim=True) + arithmetic.absolute(roundings)
        rest = rest if grad.imbalance is None else rest + grad.imbalance
        centered = product(plain, arithmetic.outward(weight, 2)).widened(rest * median.abs())
        other = arithmetic.clear_of_underflow(centered, roundings)
        both = Interval.trusted(torch.maximum(gradient.lower, other.lower), torch.minimum(gradient.upper, other.upper))
        if bool((both.lower > both.upper).any()):
            raise UnsoundBoundError(
                "Expected two enclosures of one gradient to meet, but they do not. Please report it."
            )
        return [both, *others]


class Linear(Rule):
    """``aten.linear``: y = z Wᵀ + β for z of shape (b, ..., k) and W of shape (o, k).

    Forward and backward are exact interval products; the weight's gradient is the outer product of section 3.4.
    """

    def roundings(self, site: Site) -> Roundings:
        """``k`` products in a result, ``o`` in a gradient, and one for each position in a parameter's gradient."""
        positions = math.prod(site.shapes[0][1:-1])
        joint = site.call.arguments.get(JOINT_TERMS, 0)
        assert isinstance(joint, int)
        return LinearRoundings(site.shapes[0][-1] + joint, site.call.shape[-1], positions)

    def problem(self, site: Site) -> str | None:
        """Refuse a weight or bias with samples, and an input without them."""
        shared_matrix = not any(site.samples[1:]) and len(site.shapes[1]) == 2
        if site.samples[0] and shared_matrix and len(site.shapes[0]) > 1:
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} does not apply one weight to each sample (input shape "
            f"{site.shapes[0]}). Keep the batch on the first axis and the features on the last."
        )

    def weight(self, inputs: Sequence[Value]) -> Interval:
        """Return bounds on W, (o, k)."""
        return as_interval(inputs[1])

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``z Wᵀ + β``; for inputs in a ball, intersected with the dual-norm bound."""
        operands = [as_interval(value) for value in inputs]
        if all(operand.is_point for operand in operands):
            return Interval.point(F.linear(*(operand.lower for operand in operands)))
        z, weight = operands[:2]
        result = product(z.rearranged(_as_matrix), weight.mT)
        if z.ball is not None and z.ball.scale.ndim == 1:
            result = intersection(result, ball_product(z.ball, weight))
        if len(operands) == 3:
            result = result + operands[2]
        return result.rearranged(lambda bound: bound.unflatten(0, z.shape[:-1]))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``∂L/∂z = d W``; for d that adds up to zero intersected with ``d (W - 1 m)``, which is the same."""
        weight = as_interval(inputs[1])
        result = product(grad.rearranged(_as_matrix), weight)
        if grad.balanced and grad.lower.ndim == 2 and not result.is_point:
            result = intersection(result, product(grad, less_median(weight)[0]))
        gradient = result.rearranged(lambda bound: bound.unflatten(0, grad.shape[:-1]))
        return [gradient, *[None] * (len(inputs) - 1)]

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """``∂L/∂W = Σ d ⊗ z`` and ``∂L/∂β = Σ d`` over positions."""
        if position == 2:
            flat = grad.lower.ndim == 2
            return Elementwise(grad if flat else _by_position(grad).mapped(lambda bound: bound.sum(dim=1)))
        return OuterProduct(_by_position(grad), _by_position(as_interval(inputs[0])))


class MatrixProduct(Linear):
    """``aten.matmul`` and ``aten.mm``: y = z W for a shared W of shape (k, o), as in ``x @ self.weight``."""

    def weight(self, inputs: Sequence[Value]) -> Interval:
        """Return bounds on Wᵀ."""
        return as_interval(inputs[1]).mT

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``z W``."""
        return super().forward(site, [inputs[0], as_interval(inputs[1]).mT])

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``∂L/∂z = d Wᵀ``."""
        return super().backward(site, grad, [inputs[0], as_interval(inputs[1]).mT], output)

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """``∂L/∂W = Σ z ⊗ d`` over positions."""
        return OuterProduct(_by_position(as_interval(inputs[0])), _by_position(grad))


def less_median(weight: Interval) -> tuple[Interval, Tensor]:
    """Return ``W - 1 m`` and the median m of each column, which makes ``Σ |W - m|`` least."""
    median = weight.center.median(dim=0).values
    return weight.mapped(lambda bound: bound - median), median


def _as_matrix(bound: Tensor) -> Tensor:
    """(b, ..., k) as (b t, k)."""
    return bound.reshape(-1, bound.shape[-1])


def _by_position(value: Interval) -> Interval:
    """(b, ..., k) as (b, t, k)."""

    def reshape(bound: Tensor) -> Tensor:
        return bound.reshape(bound.shape[0], -1, bound.shape[-1])

    return value.rearranged(reshape)
