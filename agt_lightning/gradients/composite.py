"""Gradients that are made of others: of one parameter at several places, and of several micro-batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.gradients.base import FactoredGradient, Leaf
from agt_lightning.interval import Interval


class Composite(FactoredGradient):
    """A combination of gradients of one parameter.

    Args:
        parts: gradients of the same parameter, at least one.
    """

    def __init__(self, parts: Sequence[FactoredGradient]) -> None:
        self.parts = tuple(parts)

    @abstractmethod
    def part_weights(self, weights: Tensor) -> Sequence[Tensor]:
        """Return the weights of each part's samples.

        Args:
            weights: of all samples, (b,).
        """

    @property
    @abstractmethod
    def additions(self) -> int:
        """Roundings of the sum of the parts, besides those of a sum over samples."""

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape

    @override
    def total(self, weights: Tensor) -> Interval | None:
        """Return the sum of the parts' totals; None if a part has none."""
        result: Interval | None = None
        for part, share in zip(self.parts, self.part_weights(weights), strict=True):
            total = part.total(share)
            if total is None:
                return None
            result = total if result is None else result + total
        return result

    @override
    def scale(self, weights: Tensor) -> float:
        return sum(part.scale(share) for part, share in zip(self.parts, self.part_weights(weights), strict=True))

    @override
    def rounded(self, arithmetic: Arithmetic, roundings: int) -> FactoredGradient:
        return type(self)([part.rounded(arithmetic, roundings + self.additions) for part in self.parts])

    @override
    def nonzero(self) -> Tensor:
        return torch.stack([part.nonzero().expand(self.shape) for part in self.parts]).any(dim=0)

    @property
    @override
    def structure(self) -> Hashable | None:
        structures = tuple(part.structure for part in self.parts)
        return None if None in structures else (type(self).__name__, structures)

    @property
    @override
    def leaves(self) -> tuple[Leaf, ...]:
        return tuple(leaf for part in self.parts for leaf in part.leaves)

    @override
    def with_leaves(self, leaves: Sequence[Leaf]) -> FactoredGradient:
        remaining = iter(leaves)
        return type(self)([part.with_leaves([next(remaining) for _ in part.leaves]) for part in self.parts])

    @override
    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient | None:
        narrowed = [part.narrow(axis, start, length) for part in self.parts]
        parts = [part for part in narrowed if part is not None]
        return type(self)(parts) if len(parts) == len(narrowed) else None


class Summed(Composite):
    """The gradient of a parameter that is used at several places: the sum of one gradient per use.

    Example:
        >>> from agt_lightning.gradients import Elementwise
        >>> use = Elementwise(Interval.point(torch.ones(2, 3)))
        >>> Summed([use, use]).block(0, 3).upper[0]
        tensor([2., 2.])
    """

    @property
    @override
    def samples(self) -> int:
        return self.parts[0].samples

    @property
    @override
    def additions(self) -> int:
        """As many as parts: each has a number for each sample."""
        return len(self.parts)

    @property
    @override
    def positions(self) -> int:
        return sum(part.positions for part in self.parts)

    @override
    def part_weights(self, weights: Tensor) -> Sequence[Tensor]:
        return [weights] * len(self.parts)

    @override
    def dense(self, rows: slice) -> Interval:
        result = self.parts[0].dense(rows)
        for part in self.parts[1:]:
            result = result + part.dense(rows)
        return result

    @override
    def block(self, start: int, stop: int) -> Interval:
        """Return the sum of the parts' blocks."""
        result = self.parts[0].block(start, stop)
        for part in self.parts[1:]:
            result = result + part.block(start, stop)
        return result


class Stacked(Composite):
    """The gradients of several micro-batches, one sample after another.

    Example:
        >>> from agt_lightning.gradients import Elementwise
        >>> part = Elementwise(Interval.point(torch.ones(2, 3)))
        >>> Stacked([part, part]).samples
        4
    """

    @property
    @override
    def samples(self) -> int:
        return sum(part.samples for part in self.parts)

    @property
    @override
    def additions(self) -> int:
        """None: sums of parts are a sum over all samples, in one of its orders."""
        return 0

    @property
    @override
    def positions(self) -> int:
        return max(part.positions for part in self.parts)

    @override
    def part_weights(self, weights: Tensor) -> Sequence[Tensor]:
        shares: tuple[Tensor, ...] = weights.split([part.samples for part in self.parts])
        return shares

    @override
    def block(self, start: int, stop: int) -> Interval:
        """Return the parts' blocks side by side."""
        return Interval.cat([part.block(start, stop) for part in self.parts], dim=1)

    @override
    def square_sums(self) -> Interval:
        return Interval.cat([part.square_sums() for part in self.parts])


def stack(parts: Sequence[FactoredGradient]) -> FactoredGradient:
    """Return the gradients of consecutive micro-batches as one; leaves of one structure and shape are concatenated.

    Args:
        parts: gradients of the same parameter, at least one.

    Example:
        >>> from agt_lightning.gradients import Elementwise
        >>> part = Elementwise(Interval.point(torch.ones(2, 3)))
        >>> type(stack([part, part])).__name__, stack([part, part]).samples
        ('Elementwise', 4)
    """
    first, *others = parts
    if not others:
        return first
    if isinstance(first, Stacked) or any(part.structure is None or _form(part) != _form(first) for part in parts):
        return Stacked(parts)
    return first.with_leaves(
        [_concatenated_leaves(leaves) for leaves in zip(*(part.leaves for part in parts), strict=True)]
    )


def merged(gradient: FactoredGradient) -> FactoredGradient:
    """Return a gradient whose consecutive samples are parts of one tensor each, if their leaves can be concatenated.

    Example:
        >>> from agt_lightning.gradients import Elementwise
        >>> part = Elementwise(Interval.point(torch.ones(2, 3)))
        >>> type(merged(Stacked([part, part]))).__name__
        'Elementwise'
    """
    return stack([merged(part) for part in gradient.parts]) if isinstance(gradient, Stacked) else gradient


def _form(gradient: FactoredGradient) -> object:
    """What two gradients must share so that their leaves can be concatenated."""
    return gradient.structure, [(leaf.shape[1:], leaf.dtype) for leaf in gradient.leaves]


def _concatenated_leaves(leaves: Sequence[Leaf]) -> Leaf:
    intervals = [leaf for leaf in leaves if isinstance(leaf, Interval)]
    return Interval.cat(intervals) if intervals else torch.cat([leaf for leaf in leaves if isinstance(leaf, Tensor)])
