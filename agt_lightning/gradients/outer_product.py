"""Gradients of weight matrices: outer products of an output gradient and an input."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import multiply, product, splits
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.arithmetic.order import require_uncrossed
from agt_lightning.gradients.base import (
    FactoredGradient,
    Factors,
    Leaf,
    common_value,
    is_nonzero,
    rounded_factors,
    samples_last,
)
from agt_lightning.interval import Interval
from agt_lightning.memory import chunks

_CACHED = 2**18
"""Entries of a factor that are multiplied at a time, so that what products are made of stays in the cache."""

_FEWEST = 1024
"""Samples that are multiplied at a time at least: sums over few are slow."""


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

    @classmethod
    def of_checked(cls, leaves: Sequence[Leaf]) -> OuterProduct:
        """Return the gradient with factors that are made of those of other gradients: outputs and inputs, in order."""
        gradient = object.__new__(cls)
        gradient.outputs, gradient.inputs = (leaf for leaf in leaves if isinstance(leaf, Interval))
        return gradient

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, (o, k)."""
        return (self.outputs.shape[2], self.inputs.shape[2])

    @property
    @override
    def samples(self) -> int:
        return self.outputs.shape[0]

    @override
    def block(self, start: int, stop: int) -> Interval:
        """Return elements of the weight: exact products of intervals, summed over positions."""
        first, last = start // self.row, (stop - 1) // self.row
        units, entries = slice(first, last + 1), slice(start - first * self.row, stop - last * self.row)
        if self.outputs.shape[1] == 1:
            d, z = _units_first(self.outputs, units), _units_first(self.inputs, entries)
            return multiply(d[:, None], z[None]).rearranged(lambda bound: bound.reshape(-1, self.samples))
        d, z = self.outputs[:, :, units].mT, self.inputs[:, :, entries]
        return product(d, z).rearranged(lambda bound: bound.flatten(1).T.contiguous())

    @override
    def total(self, weights: Tensor) -> Interval | None:
        """Return ``dᵀ z`` as one interval product; None if some pair of factors may straddle zero twice."""
        if not splits(self.outputs, self.inputs):
            return None
        common = common_value(weights)
        total: Interval | None = None
        for rows in chunks(self.samples, 1, max(_FEWEST, _CACHED // max(self.shape))):
            d, z = _flat(self.outputs[rows]), _flat(self.inputs[rows])
            if common is None:
                weight = Interval.point(weights[rows].repeat_interleave(self.positions)[:, None], nonnegative=True)
                d, z = (multiply(d, weight), z) if self.shape[0] <= self.shape[1] else (d, multiply(z, weight))
            part = product(d.mT, z)
            total = part if total is None else total + part
        assert total is not None
        return require_uncrossed(total if common is None else total.scaled(common))

    @override
    def rounded(self, arithmetic: Arithmetic, roundings: int) -> OuterProduct:
        return self.of_checked(rounded_factors(self.outputs, self.inputs, arithmetic, roundings))

    @override
    def nonzero(self) -> Tensor:
        outputs, inputs = (is_nonzero(factor).flatten(0, 1).any(dim=0) for factor in (self.outputs, self.inputs))
        return outputs[:, None] & inputs

    @property
    @override
    def positions(self) -> int:
        return self.outputs.shape[1]

    @override
    def factors(self) -> Factors:
        """Return d and z."""
        return Factors(self.outputs, lambda rows: self.inputs[rows])

    @override
    def scale(self, weights: Tensor) -> float:
        """Return ``Σ_i w_i Σ_t max |d_it| max |z_it|``."""
        largest = _largest(self.outputs) * _largest(self.inputs)
        return float(largest.sum(dim=1) @ weights)

    @override
    def square_sums(self) -> Interval:
        """Return products of the factors' squared norms if there is one position; otherwise expand."""
        if self.outputs.shape[1] != 1:
            return super().square_sums()
        lower = self.outputs.mignitude.square().sum(dim=(1, 2)) * self.inputs.mignitude.square().sum(dim=(1, 2))
        upper = self.outputs.magnitude.square().sum(dim=(1, 2)) * self.inputs.magnitude.square().sum(dim=(1, 2))
        return Interval.trusted(lower, upper, nonnegative=True)

    @property
    @override
    def structure(self) -> Hashable:
        return "OuterProduct"

    @property
    @override
    def leaves(self) -> tuple[Leaf, ...]:
        return (self.outputs, self.inputs)

    @override
    def with_leaves(self, leaves: Sequence[Leaf]) -> FactoredGradient:
        return self.of_checked(leaves)

    @override
    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient:
        """Return the gradient of some entries of d, or of z."""
        part = (self.outputs, self.inputs)[axis].rearranged(lambda bound: bound.narrow(2, start, length))
        return self.of_checked((part, self.inputs) if axis == 0 else (self.outputs, part))


def _largest(factor: Interval) -> Tensor:
    """The largest magnitude at each position, (b, t)."""
    return torch.maximum(factor.upper.amax(dim=2), -factor.lower.amin(dim=2))  # without a tensor of magnitudes


def _units_first(factor: Interval, units: slice) -> Interval:
    """A factor of one position as (units, b), contiguous."""
    return factor.rearranged(lambda bound: samples_last([bound[:, 0, units]]))


def _flat(factor: Interval) -> Interval:
    """Samples and positions as one axis, (b t, units)."""
    return factor.rearranged(lambda bound: bound.flatten(0, 1))
