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


class Summed(FactoredGradient):
    """Gradient of a parameter that is used at several places: the sum of one gradient per use.

    Example:
        >>> from agt_lightning.gradients import Elementwise
        >>> use = Elementwise(Interval.point(torch.ones(2, 3)))
        >>> Summed([use, use]).block(0, 3).upper[0]
        tensor([2., 2.])
    """

    def __init__(self, parts: Sequence[FactoredGradient]) -> None:
        self.parts = tuple(parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return self.parts[0].shape

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.parts[0].samples

    def block(self, start: int, stop: int) -> Interval:
        """Sum of the parts' blocks."""
        result = self.parts[0].block(start, stop)
        for part in self.parts[1:]:
            result = result + part.block(start, stop)
        return result

    def total(self, weights: Tensor) -> Interval | None:
        """Sum of the parts' totals, if each has one."""
        result: Interval | None = None
        for part in self.parts:
            total = part.total(weights)
            if total is None:
                return None
            result = total if result is None else result + total
        return result

    def scale(self, weights: Tensor) -> float:
        """Sum of the parts' scales."""
        return sum(part.scale(weights) for part in self.parts)

    @property
    def kind(self) -> Hashable | None:
        """The parts' kinds."""
        return _kinds(self)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The parts' pieces, one part after another."""
        return tuple(piece for part in self.parts for piece in part.pieces)

    def of(self, pieces: Sequence[Piece]) -> FactoredGradient:
        """Each part of its own pieces."""
        return Summed(_parts(self.parts, pieces))

    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient | None:
        """Of each part."""
        parts = [part.narrow(axis, start, length) for part in self.parts]
        known = [part for part in parts if part is not None]
        return Summed(known) if len(known) == len(parts) else None


class Stacked(FactoredGradient):
    """Gradients of several micro-batches, one sample after another.

    Example:
        >>> from agt_lightning.gradients import Elementwise
        >>> part = Elementwise(Interval.point(torch.ones(2, 3)))
        >>> Stacked([part, part]).samples
        4
    """

    def __init__(self, parts: Sequence[FactoredGradient]) -> None:
        self.parts = tuple(parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return self.parts[0].shape

    @property
    def samples(self) -> int:
        """Number of samples of all parts."""
        return sum(part.samples for part in self.parts)

    def block(self, start: int, stop: int) -> Interval:
        """The parts' blocks side by side."""
        blocks = [part.block(start, stop) for part in self.parts]
        lower = torch.cat([block.lower for block in blocks], dim=1)
        if all(block.is_point for block in blocks):
            return Interval.point(lower)
        return Interval.trusted(lower, torch.cat([block.upper for block in blocks], dim=1))

    def total(self, weights: Tensor) -> Interval | None:
        """Sum of the parts' totals, if each has one."""
        result: Interval | None = None
        for part, part_weights in zip(self.parts, weights.split([p.samples for p in self.parts]), strict=True):
            total = part.total(part_weights)
            if total is None:
                return None
            result = total if result is None else result + total
        return result

    def scale(self, weights: Tensor) -> float:
        """Sum of the parts' scales."""
        shares = weights.split([part.samples for part in self.parts])
        return sum(part.scale(share) for part, share in zip(self.parts, shares, strict=True))

    @property
    def kind(self) -> Hashable | None:
        """The parts' kinds."""
        return _kinds(self)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The parts' pieces, one part after another."""
        return tuple(piece for part in self.parts for piece in part.pieces)

    def of(self, pieces: Sequence[Piece]) -> FactoredGradient:
        """Each part of its own pieces."""
        return Stacked(_parts(self.parts, pieces))

    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient | None:
        """Of each part."""
        parts = [part.narrow(axis, start, length) for part in self.parts]
        known = [part for part in parts if part is not None]
        return Stacked(known) if len(known) == len(parts) else None

    def square_sums(self) -> Interval:
        """The parts' norms, one sample after another."""
        sums = [part.square_sums() for part in self.parts]
        lower = torch.cat([bounds.lower for bounds in sums])
        return Interval.trusted(lower, torch.cat([bounds.upper for bounds in sums]), nonnegative=True)


def stack(parts: Sequence[FactoredGradient]) -> FactoredGradient:
    """Gradients of consecutive micro-batches as one; pieces of one kind and shape are put side by side.

    Example:
        >>> from agt_lightning.gradients import Elementwise
        >>> part = Elementwise(Interval.point(torch.ones(2, 3)))
        >>> type(stack([part, part])).__name__, stack([part, part]).samples
        ('Elementwise', 4)
    """
    first, *others = parts
    if not others:
        return first
    if isinstance(first, Stacked) or any(_form(part) != _form(first) or part.kind is None for part in parts):
        return Stacked(parts)
    return first.of([_joined(pieces) for pieces in zip(*(part.pieces for part in parts), strict=True)])


def _form(gradient: FactoredGradient) -> object:
    """Gradients of one form differ in the values of their pieces and the number of samples."""
    return gradient.kind, [(piece.shape[1:], piece.dtype) for piece in gradient.pieces]


def _joined(pieces: Sequence[Piece]) -> Piece:
    intervals = [piece for piece in pieces if isinstance(piece, Interval)]
    return Interval.cat(intervals) if intervals else torch.cat([f for f in pieces if isinstance(f, Tensor)])


def _kinds(gradient: Summed | Stacked) -> Hashable | None:
    kinds = tuple(part.kind for part in gradient.parts)
    return None if None in kinds else (type(gradient).__name__, kinds)


def _parts(parts: Sequence[FactoredGradient], pieces: Sequence[Piece]) -> list[FactoredGradient]:
    """Each part of its own share of the pieces, which come one part after another."""
    remaining = list(pieces)
    result = []
    for part in parts:
        count = len(part.pieces)
        result.append(part.of(remaining[:count]))
        remaining = remaining[count:]
    return result
