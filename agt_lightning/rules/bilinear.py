"""Matrix products in which both factors move: attention scores, mixtures of tokens, products with a stack of weights.

Axis letters: ``m`` rows of the left factor, ``k`` inner dimension, ``n`` columns of the right one; axes in front of
these are batch axes, of which the first counts samples.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning.gradients import FactoredGradient, OuterProduct
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, Value, as_interval, map_bounds, name_of, reduce_to
from agt_lightning.rules.linear import MatrixProduct


class BatchedProduct(Rule):
    """``bmm``, and ``matmul`` with more than a weight matrix: A B of independent factors; exact."""

    is_contraction = True

    def problem(self, site: Site) -> str | None:
        """Samples meet along axis 0 only."""
        ranks = [len(shape) for shape in site.shapes]
        if all(site.samples) and ranks[0] == ranks[1] >= 3:
            return None
        if not all(site.samples) and _is_shared(site, site.samples.index(False)):
            return None
        shapes = " and ".join(str(shape) for shape in site.shapes)
        return (
            f"`{name_of(site.call)}` at {site.call.source} multiplies matrices of shapes {shapes} so that samples "
            "meet each other, or does not apply one weight to each sample. Keep the batch as first of at least three "
            "axes in both factors."
        )

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``A B``."""
        return product(as_interval(inputs[0]), as_interval(inputs[1]))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``∂L/∂A = G Bᵀ`` and ``∂L/∂B = Aᵀ G``."""
        left, right = as_interval(inputs[0]), as_interval(inputs[1])
        gradients = (product(grad, transposed(right)), product(transposed(left), grad))
        return [
            reduce_to(gradient, value.shape, samples=samples)
            for gradient, value, samples in zip(gradients, (left, right), site.samples, strict=True)
        ]

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """``Σ g ⊗ x`` over columns for one matrix from the left; a stack of matrices is kept sample by sample."""
        if position == 0 and len(site.shapes[0]) == 2:
            return OuterProduct(_columns(grad), _columns(as_interval(inputs[1])))
        return super().parameter_gradient(site, position, grad, inputs)


class Matmul(Rule):
    """``matmul``: one weight matrix for all samples, or a product of two activations; exact."""

    is_contraction = True
    _weight = MatrixProduct()
    _batched = BatchedProduct()

    def _rule(self, site: Site) -> Rule:
        weight = site.samples[0] and not site.samples[1] and len(site.shapes[1]) == 2
        return self._weight if weight else self._batched

    def problem(self, site: Site) -> str | None:
        """That of the product in question."""
        return self._rule(site).problem(site)

    def forward(self, site: Site, inputs: Sequence[Value]) -> Value:
        """``A B``."""
        return self._rule(site).forward(site, inputs)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``∂L/∂A = G Bᵀ`` and ``∂L/∂B = Aᵀ G``."""
        return self._rule(site).backward(site, grad, inputs, output)

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """That of the product in question."""
        return self._rule(site).parameter_gradient(site, position, grad, inputs)


def product(a: Interval, b: Interval) -> Interval:
    """Matrix products of independent intervals, with broadcast batch axes; exact.

    Args:
        a: (..., m, k).
        b: (..., k, n).

    Example:
        >>> a = Interval(-torch.ones(1, 1, 2), torch.ones(1, 1, 2))
        >>> b = Interval(-torch.ones(1, 2, 1), torch.ones(1, 2, 1))
        >>> product(a, b).upper
        tensor([[[2.]]])
    """
    if a.is_point and b.is_point:
        return Interval.point(a.lower @ b.lower, nonnegative=a.nonnegative and b.nonnegative)
    if a.nonnegative or a.is_point:
        return _known_sign_product(a, b)
    if b.nonnegative or b.is_point:
        return transposed(_known_sign_product(transposed(b), transposed(a)))
    return Interval.trusted(-_largest_products(a, -b), _largest_products(a, b))


def transposed(value: Interval) -> Interval:
    """The last two axes exchanged."""
    return map_bounds(value, lambda bound: bound.mT, nonnegative=value.nonnegative)


def _known_sign_product(a: Interval, b: Interval) -> Interval:
    """``a >= 0`` or a point: upper ``au bu⁺ - al bu⁻`` with ends of a exchanged where a is a negative point."""
    if a.is_point:
        rising, falling = a.lower.clamp(min=0), a.lower.clamp(max=0)
        return Interval.trusted(rising @ b.lower + falling @ b.upper, rising @ b.upper + falling @ b.lower)
    upper = a.upper @ b.upper.clamp(min=0) + a.lower @ b.upper.clamp(max=0)
    lower = a.lower @ b.lower.clamp(min=0) + a.upper @ b.lower.clamp(max=0)
    return Interval.trusted(lower, upper, nonnegative=b.nonnegative)


def _largest_products(a: Interval, b: Interval) -> Tensor:
    """``Σ_k max a_k b_k``: sign splitting, less the smaller product of like ends where both factors straddle zero."""
    total = a.upper.clamp(min=0) @ b.upper.clamp(min=0) + a.lower.clamp(max=0) @ b.lower.clamp(max=0)
    total = total + a.lower.clamp(min=0) @ b.upper.clamp(max=0) + a.upper.clamp(max=0) @ b.lower.clamp(min=0)
    for k in _doubly_straddling(a, b):
        both_high = a.upper[..., :, k, None].clamp(min=0) * b.upper[..., k, None, :].clamp(min=0)
        both_low = a.lower[..., :, k, None].clamp(max=0) * b.lower[..., k, None, :].clamp(max=0)
        total -= torch.minimum(both_high, both_low)
    return total


def _doubly_straddling(a: Interval, b: Interval) -> list[int]:
    """Inner indices at which some entry of both factors straddles zero."""
    in_a = ((a.lower < 0) & (a.upper > 0)).flatten(0, -2).any(dim=0)
    in_b = ((b.lower < 0) & (b.upper > 0)).mT.flatten(0, -2).any(dim=0)
    indices: list[int] = (in_a & in_b).nonzero().squeeze(1).tolist()
    return indices


def _is_shared(site: Site, position: int) -> bool:
    """Whether the factor without samples broadcasts over them, and the other one has a matrix for each."""
    shared, own = site.shapes[position], site.shapes[1 - position]
    broadcast = 2 <= len(shared) < len(own) or (len(shared) == len(own) and shared[0] == 1)
    return broadcast and len(own) >= 3


def _columns(value: Interval) -> Interval:
    """(b, ..., m, n) as (b, t, m) with one position per column."""

    def reshape(bound: Tensor) -> Tensor:
        return bound.mT.reshape(bound.shape[0], -1, bound.shape[-2])

    return map_bounds(value, reshape, nonnegative=value.nonnegative)
