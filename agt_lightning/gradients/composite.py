"""Gradients that are made of others: of one parameter at several places, and of several micro-batches."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from agt_lightning.gradients.base import FactoredGradient, Piece
from agt_lightning.interval import Interval


class Composite(FactoredGradient):
    """Gradients of one parameter, put together; parts know their pieces, and are divided alike.

    Args:
        parts: gradients of the same parameter.
    """

    def __init__(self, parts: Sequence[FactoredGradient]) -> None:
        self.parts = tuple(parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return self.parts[0].shape

    @property
    def kind(self) -> Hashable | None:
        """The parts' kinds."""
        kinds = tuple(part.kind for part in self.parts)
        return None if None in kinds else (type(self).__name__, kinds)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The parts' pieces, one part after another."""
        return tuple(piece for part in self.parts for piece in part.pieces)

    def of(self, pieces: Sequence[Piece]) -> FactoredGradient:
        """Each part of its own pieces."""
        remaining = iter(pieces)
        return type(self)([part.of([next(remaining) for _ in part.pieces]) for part in self.parts])

    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient | None:
        """Of each part."""
        parts = [part.narrow(axis, start, length) for part in self.parts]
        known = [part for part in parts if part is not None]
        return type(self)(known) if len(known) == len(parts) else None


class Summed(Composite):
    """Gradient of a parameter that is used at several places: the sum of one gradient per use.

    Example:
        >>> from agt_lightning.gradients import Elementwise
        >>> use = Elementwise(Interval.point(torch.ones(2, 3)))
        >>> Summed([use, use]).block(0, 3).upper[0]
        tensor([2., 2.])
    """

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


class Stacked(Composite):
    """Gradients of several micro-batches, one sample after another.

    Example:
        >>> from agt_lightning.gradients import Elementwise
        >>> part = Elementwise(Interval.point(torch.ones(2, 3)))
        >>> Stacked([part, part]).samples
        4
    """

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
