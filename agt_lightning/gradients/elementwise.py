"""Gradients of parameters that act element by element: biases and scales."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.arithmetic.order import require_uncrossed
from agt_lightning.gradients.base import FactoredGradient, Leaf, is_nonzero, samples_last
from agt_lightning.interval import Interval


class Elementwise(FactoredGradient):
    """Gradients that are stored as they are, since they are no larger than the activations.

    Args:
        values: bounds of shape ``(b, *parameter shape)``.

    Example:
        >>> gradient = Elementwise(Interval.point(torch.tensor([[1.0, 2.0], [3.0, 4.0]])))
        >>> gradient.total(torch.tensor([0.5, 0.5])).upper
        tensor([2., 3.])
    """

    def __init__(self, values: Interval) -> None:
        self.values = require_uncrossed(values)

    @classmethod
    def of_checked(cls, leaves: Sequence[Leaf]) -> Elementwise:
        """Return the gradient with values that are made of those of another gradient."""
        gradient = object.__new__(cls)
        (gradient.values,) = (leaf for leaf in leaves if isinstance(leaf, Interval))
        return gradient

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape[1:])

    @property
    @override
    def samples(self) -> int:
        return self.values.shape[0]

    @override
    def block(self, start: int, stop: int) -> Interval:
        """Return elements of the parameter, samples last."""
        return self.values.rearranged(lambda bound: samples_last([bound.reshape(self.samples, -1)[:, start:stop]]))

    @override
    def total(self, weights: Tensor) -> Interval:
        """Return the weighted sums of both bounds."""
        return self.values.mapped(lambda bound: torch.tensordot(weights, bound, dims=1))

    @override
    def scale(self, weights: Tensor) -> float:
        """Return ``Σ_i w_i max |δ_i|``."""
        lower, upper = (bound.reshape(self.samples, -1) for bound in (self.values.lower, self.values.upper))
        return float(torch.maximum(upper.amax(dim=1), -lower.amin(dim=1)) @ weights)

    @override
    def rounded(self, arithmetic: Arithmetic, roundings: int) -> Elementwise:
        return self.of_checked((arithmetic.outward(self.values, roundings),))

    @override
    def nonzero(self) -> Tensor:
        return is_nonzero(self.values).any(dim=0)

    @property
    @override
    def structure(self) -> Hashable:
        return "Elementwise"

    @property
    @override
    def leaves(self) -> tuple[Leaf, ...]:
        return (self.values,)

    @override
    def with_leaves(self, leaves: Sequence[Leaf]) -> FactoredGradient:
        return self.of_checked(leaves)

    @override
    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient:
        return self.of_checked((self.values.rearranged(lambda bound: bound.narrow(axis + 1, start, length)),))
