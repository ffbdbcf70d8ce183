"""Gradients of weight matrices: outer products of an output gradient and an input."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from agt_lightning.arithmetic import matmul, multiply
from agt_lightning.arithmetic.convolution import mapped, split_product, splits
from agt_lightning.arithmetic.order import require_uncrossed, uncrossed
from agt_lightning.gradients.base import FactoredGradient, Factors, Piece
from agt_lightning.interval import Interval


class OuterProduct(FactoredGradient):
    """``δ_i = Σ_t d_it ⊗ z_it``: o + k numbers per sample and position instead of o k.

    Args:
        outputs: bounds on d, the gradient at the layer's output, (b, t, o).
        inputs: bounds on z, the layer's input, (b, t, k).

    Reference:
        Paper, section 3.4, "Backward Pass Bounds".

    Example:
        >>> import torch
        >>> gradient = OuterProduct(Interval.point(torch.ones(3, 1, 2)), Interval.point(torch.ones(3, 1, 4)))
        >>> gradient.shape, gradient.total(torch.ones(3)).upper[0, 0]
        ((2, 4), tensor(3.))
    """

    def __init__(self, outputs: Interval, inputs: Interval) -> None:
        self.outputs = require_uncrossed(outputs)
        self.inputs = require_uncrossed(inputs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, (o, k)."""
        return (self.outputs.shape[2], self.inputs.shape[2])

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.outputs.shape[0]

    def block(self, start: int, stop: int) -> Interval:
        """Elements of the weight, expanded: exact products of intervals, summed over positions."""
        first, last = start // self.row, (stop - 1) // self.row
        units, entries = slice(first, last + 1), slice(start - first * self.row, stop - last * self.row)
        if self.outputs.shape[1] == 1:
            d, z = _samples_last(self.outputs, units), _samples_last(self.inputs, entries)
            product = multiply(_view(d, (-1, 1, self.samples)), _view(z, (1, -1, self.samples)))
            return _view(product, (-1, self.samples))
        d = mapped(self.outputs, lambda bound: bound[:, :, units].transpose(1, 2))
        z = mapped(self.inputs, lambda bound: bound[:, :, entries])
        return mapped(contract(d, z), lambda bound: bound.flatten(1).T.contiguous())

    def total(self, weights: Tensor) -> Interval | None:
        """``dᵀ z`` as one interval product; only where no pair of factors straddles zero twice."""
        if not splits(self.outputs, self.inputs):
            return None
        weight = Interval.point(weights[:, None, None], nonnegative=True)
        if self.shape[0] <= self.shape[1]:  # the smaller factor is cheaper to scale
            return require_uncrossed(matmul(_columns(multiply(self.outputs, weight)), _columns(self.inputs)))
        return require_uncrossed(matmul(_columns(self.outputs), _columns(multiply(self.inputs, weight))))

    def factors(self) -> Factors:
        """D and z themselves."""
        return Factors(self.outputs, lambda rows: self.inputs[rows])

    def scale(self, weights: Tensor) -> float:
        """``Σ_i w_i Σ_t max |d_it| max |z_it|``."""
        largest = _largest(self.outputs) * _largest(self.inputs)
        return float(largest.sum(dim=1) @ weights)

    def square_sums(self) -> Interval:
        """Products of the factors' squared norms, without expanding, where there is one position."""
        if self.outputs.shape[1] != 1:
            return super().square_sums()
        lower = self.outputs.mignitude.square().sum(dim=(1, 2)) * self.inputs.mignitude.square().sum(dim=(1, 2))
        upper = self.outputs.magnitude.square().sum(dim=(1, 2)) * self.inputs.magnitude.square().sum(dim=(1, 2))
        return Interval.trusted(lower, upper, nonnegative=True)

    @property
    def kind(self) -> Hashable:
        """Nothing but pieces."""
        return "OuterProduct"

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The gradients at the output, d, and the inputs, z."""
        return (self.outputs, self.inputs)

    def of(self, pieces: Sequence[Piece]) -> FactoredGradient:
        """Other d and z."""
        outputs, inputs = pieces
        assert isinstance(outputs, Interval)
        assert isinstance(inputs, Interval)
        return OuterProduct(outputs, inputs)

    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient:
        """Some entries of d, or of z."""
        part = mapped((self.outputs, self.inputs)[axis], lambda bound: bound.narrow(2, start, length))
        return OuterProduct(part, self.inputs) if axis == 0 else OuterProduct(self.outputs, part)


def _largest(factor: Interval) -> Tensor:
    """Largest magnitude of each position, (b, t)."""
    return torch.maximum(factor.upper.amax(dim=2), -factor.lower.amin(dim=2))  # without a tensor of magnitudes


def contract(a: Interval, b: Interval) -> Interval:
    """``Σ_t a[:, r, t] b[:, t, k]``, a matrix product for each sample; exact.

    Args:
        a: (b, r, t).
        b: (b, t, k), independent of ``a``.

    Returns:
        Interval of shape (b, r, k).

    Example:
        >>> a = Interval(-torch.ones(1, 1, 2), torch.ones(1, 1, 2))
        >>> contract(a, Interval(-torch.ones(1, 2, 1), 2 * torch.ones(1, 2, 1))).upper
        tensor([[[4.]]])
    """
    if splits(a, b):
        return split_product(torch.bmm, a, b)
    return uncrossed(_largest_sums(a, -b).neg_(), _largest_sums(a, b))


def _largest_sums(a: Interval, b: Interval) -> Tensor:
    """``Σ_t max a_t b_t``: sign splitting, less the smaller of two products wherever both factors straddle zero."""
    left = [a.upper.clamp(min=0), a.lower.clamp(max=0), a.lower.clamp(min=0), a.upper.clamp(max=0)]
    right = [b.upper.clamp(min=0), b.lower.clamp(max=0), b.upper.clamp(max=0), b.lower.clamp(min=0)]
    total = torch.bmm(torch.cat(left, dim=2), torch.cat(right, dim=1))
    in_a, in_b = (a.lower < 0) & (a.upper > 0), (b.lower < 0) & (b.upper > 0)
    high_a, low_a = a.upper * in_a, -a.lower * in_a
    high_b, low_b = b.upper * in_b, -b.lower * in_b
    straddling: list[int] = (in_a.any(dim=1) & in_b.any(dim=2)).any(dim=0).nonzero().squeeze(1).tolist()
    for t in straddling:
        both_high = high_a[:, :, t, None] * high_b[:, t, None, :]
        total -= torch.minimum(both_high, low_a[:, :, t, None] * low_b[:, t, None, :])
    return total


def _samples_last(factor: Interval, units: slice) -> Interval:
    """A factor of one position as (units, b), contiguous."""
    return mapped(factor, lambda bound: bound[:, 0, units].T.contiguous())


def _columns(factor: Interval) -> Interval:
    """Samples and positions as the inner dimension: (units, b t)."""
    lower = factor.lower.flatten(0, 1).T
    upper = lower if factor.is_point else factor.upper.flatten(0, 1).T
    return Interval.trusted(lower, upper, nonnegative=factor.nonnegative)


def _view(interval: Interval, shape: tuple[int, ...]) -> Interval:
    lower = interval.lower.reshape(shape)
    upper = lower if interval.is_point else interval.upper.reshape(shape)
    return Interval.trusted(lower, upper, nonnegative=interval.nonnegative)
