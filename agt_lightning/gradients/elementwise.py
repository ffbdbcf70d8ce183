"""Gradients of parameters that act element by element: biases and scales."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from agt_lightning.arithmetic.convolution import mapped
from agt_lightning.arithmetic.order import require_uncrossed
from agt_lightning.gradients.base import FactoredGradient, Piece
from agt_lightning.interval import Interval


class Elementwise(FactoredGradient):
    """Gradients kept as they are, since they are no larger than the activations they meet.

    Args:
        values: bounds of shape (b, *parameter shape).

    Example:
        >>> gradient = Elementwise(Interval.point(torch.tensor([[1.0, 2.0], [3.0, 4.0]])))
        >>> gradient.total(torch.tensor([0.5, 0.5])).upper
        tensor([2., 3.])
    """

    def __init__(self, values: Interval) -> None:
        self.values = require_uncrossed(values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return tuple(self.values.shape[1:])

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.values.shape[0]

    def block(self, start: int, stop: int) -> Interval:
        """Elements of the parameter, samples last."""

        def samples_last(bound: Tensor) -> Tensor:
            return bound.reshape(self.samples, -1)[:, start:stop].T.contiguous()

        lower = samples_last(self.values.lower)
        return Interval.trusted(lower, lower if self.values.is_point else samples_last(self.values.upper))

    def total(self, weights: Tensor) -> Interval:
        """Weighted sums of both bounds."""
        lower = torch.tensordot(weights, self.values.lower, dims=1)
        if self.values.is_point:
            return Interval.point(lower)
        return Interval.trusted(lower, torch.tensordot(weights, self.values.upper, dims=1))

    def scale(self, weights: Tensor) -> float:
        """``Σ_i w_i max |δ_i|``."""
        lower, upper = (bound.reshape(self.samples, -1) for bound in (self.values.lower, self.values.upper))
        return float(torch.maximum(upper.amax(dim=1), -lower.amin(dim=1)) @ weights)

    @property
    def kind(self) -> Hashable:
        """Nothing but values."""
        return "Elementwise"

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The values."""
        return (self.values,)

    def of(self, pieces: Sequence[Piece]) -> FactoredGradient:
        """Other values."""
        (values,) = pieces
        assert isinstance(values, Interval)
        return Elementwise(values)

    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient:
        """Some of the values."""
        return Elementwise(mapped(self.values, lambda bound: bound.narrow(axis + 1, start, length)))
