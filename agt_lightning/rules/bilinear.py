"""Matrix products of two intervals: attention scores, mixtures of tokens, products with a stack of weights.

Axis letters: ``m`` rows of the left factor, ``k`` inner dimension, ``n`` columns of the right one; axes in front of
these are batch axes, of which the first counts samples.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from agt_lightning.arithmetic import product
from agt_lightning.gradients import FactoredGradient, OuterProduct
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, name_of, reduce_to
from agt_lightning.rules.linear import MatrixProduct
from agt_lightning.rules.roundings import BilinearContraction, Roundings
from agt_lightning.rules.values import Value, as_interval


class BatchedProduct(Rule):
    """``bmm``, and ``matmul`` with more than a weight matrix: A B of independent factors; exact."""

    def takes_constants(self, site: Site) -> bool:
        """Accept matrices."""
        return all(len(shape) > 1 for shape in site.shapes)

    def roundings(self, site: Site) -> Roundings:
        """The inner dimension forward; backward the rows or columns, and all copies of a shared factor."""
        rows, inner = site.shapes[0][-2:]
        columns, copies = site.shapes[1][-1], math.prod(site.call.shape[1:-2])
        sums = max(rows, columns) * copies
        return BilinearContraction(inner, sums, sums)

    def problem(self, site: Site) -> str | None:
        """Refuse products that pair different samples, or a shared factor that is not applied to each sample."""
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
        gradients = (product(grad, right.mT), product(left.mT, grad))
        return [
            reduce_to(gradient, value.shape, samples=samples)
            for gradient, value, samples in zip(gradients, (left, right), site.samples, strict=True)
        ]

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """``Σ g ⊗ x`` over columns for one matrix from the left; a stack of matrices is kept sample by sample."""
        if position == 0 and len(site.shapes[0]) == 2:
            return OuterProduct(_columns_as_positions(grad), _columns_as_positions(as_interval(inputs[1])))
        return super().parameter_gradient(site, position, grad, inputs)


class Matmul(Rule):
    """``matmul``: one weight matrix for all samples, or a product of two activations; exact."""

    _weight = MatrixProduct()
    _batched = BatchedProduct()

    def at(self, site: Site) -> Rule:
        """Return that of a weight matrix, or that of two activations."""
        weight = site.samples[0] and not site.samples[1] and len(site.shapes[1]) == 2
        return self._weight if weight else self._batched

    def takes_constants(self, site: Site) -> bool:
        """Accept matrices."""
        return self._batched.takes_constants(site)

    def problem(self, site: Site) -> str | None:
        """As the rule that applies."""
        return self.at(site).problem(site)

    def forward(self, site: Site, inputs: Sequence[Value]) -> Value:
        """``A B``."""
        return self.at(site).forward(site, inputs)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``∂L/∂A = G Bᵀ`` and ``∂L/∂B = Aᵀ G``."""
        return self.at(site).backward(site, grad, inputs, output)

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """As the rule that applies."""
        return self.at(site).parameter_gradient(site, position, grad, inputs)


def _is_shared(site: Site, position: int) -> bool:
    """Return whether the factor without samples broadcasts over them, and the other has a matrix for each sample."""
    shared, other = site.shapes[position], site.shapes[1 - position]
    broadcast = 2 <= len(shared) < len(other) or (len(shared) == len(other) and shared[0] == 1)
    return broadcast and len(other) >= 3


def _columns_as_positions(value: Interval) -> Interval:
    """(b, ..., m, n) as (b, t, m) with one position per column."""

    def reshape(bound: Tensor) -> Tensor:
        return bound.mT.reshape(bound.shape[0], -1, bound.shape[-2])

    return value.rearranged(reshape)
