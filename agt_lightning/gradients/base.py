"""The questions that every factored gradient answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.interval import Interval

Piece = Tensor | Interval
"""A part of a gradient that holds some numbers of each sample, the samples along its first axis."""

_BLOCK_BUDGET = 16 * 2**20
"""Bytes of one bound of a block that is expanded only to be summed up."""


@dataclass(frozen=True)
class Factors:
    """Factors of ``δ_i = Σ_t d_it ⊗ z_it``, where the parameter is a matrix (o, k).

    Args:
        outputs: bounds on d, (b, t, o).
        inputs: bounds on z of some samples, (rows, t, k), by their range or positions.
    """

    outputs: Interval
    inputs: Callable[[slice | Tensor], Interval]


class FactoredGradient(ABC):
    """Bounds ``[δ_L, δ_U]`` on the gradient of each sample with respect to one parameter tensor.

    The parameter's elements are numbered in memory order. Blocks of them are expanded one after another, so memory does
    not grow with batch x parameters.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """Number b of samples."""

    @property
    def elements(self) -> int:
        """Number e of elements of the parameter."""
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        """Elements per index of the first axis; a block holds whole rows, or lies in one."""
        return math.prod(self.shape[1:])

    @abstractmethod
    def block(self, start: int, stop: int) -> Interval:
        """Per-sample bounds of elements ``start`` to ``stop``, shape (e, b): samples last, ready for top-n."""

    @abstractmethod
    def total(self, weights: Tensor) -> Interval | None:
        """Exact bounds on ``Σ_i w_i δ_i`` by matrix products alone, or None if only blocks can tell.

        Args:
            weights: (b,), nonnegative.
        """

    @abstractmethod
    def scale(self, weights: Tensor) -> float:
        """``Σ_i w_i max |δ_i|``, or a little more: the size that rounding errors of the sum are relative to."""

    def factors(self) -> Factors | None:
        """The factors that the bounds are products of, or None if there are none."""
        return None

    @property
    def kind(self) -> Hashable | None:
        """All that makes this gradient beside its pieces; None if there are no pieces with one entry a sample."""
        return None

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What it is made of, the samples along the first axis."""
        return ()

    def of(self, pieces: Sequence[Piece]) -> FactoredGradient:
        """The gradient of this kind with other pieces."""
        raise NotImplementedError(f"`{type(self).__name__}` has no pieces.")

    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient | None:
        """Some elements of the parameter, as `torch.Tensor.narrow` takes them; None if the pieces do not allow it."""
        return None

    def square_sums(self) -> Interval:
        """Bounds on the squared Euclidean norm of each sample's gradient over the box, shape (b,)."""
        rows = max(1, _BLOCK_BUDGET // max(1, self.row * self.samples * 8))
        blocks = [
            self.block(start, min(start + rows * self.row, self.elements))
            for start in range(0, self.elements, rows * self.row)
        ]
        lower = torch.stack([block.mignitude.square().sum(dim=0) for block in blocks]).sum(dim=0)
        upper = torch.stack([block.magnitude.square().sum(dim=0) for block in blocks]).sum(dim=0)
        return Interval.trusted(lower, upper, nonnegative=True)
