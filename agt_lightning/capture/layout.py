"""Where the samples are among the axes of a captured value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The axis that counts samples, alone or folded with other axes: its index is ``(before, sample, after)``.

    A value with its samples first has the samples on axis 0 and its other axes behind, in their order; of a folded axis
    ``before · after`` stays in its place.

    Args:
        axis: the axis.
        before: number of indices that vary slower than the samples on it.
        after: number of indices that vary faster.

    Example:
        >>> words = Layout(0, after=5)  # (b t, d)
        >>> words.first((10, 3)), words.reshaped((10, 3), (2, 5, 3))
        ((2, 5, 3), Layout(axis=0, before=1, after=1))
    """

    axis: int
    before: int = 1
    after: int = 1

    @property
    def folded(self) -> int:
        """Number of elements that share the axis for each sample."""
        return self.before * self.after

    def samples(self, shape: Sequence[int]) -> int:
        """Return the number of samples of a value of this shape."""
        return shape[self.axis] // self.folded

    def order(self, rank: int) -> list[int]:
        """Return the axes behind the samples, once these are first."""
        return [axis for axis in range(rank) if axis != self.axis or self.folded > 1]

    def position(self, axis: int, rank: int) -> int:
        """Return where an axis is, once the samples are first."""
        return 1 + self.order(rank).index(axis % rank)

    def first(self, shape: Sequence[int], samples: int | None = None) -> tuple[int, ...]:
        """Return the shape of a value once its samples are first; with another number of them if one is given."""
        rest = [self.folded if axis == self.axis else shape[axis] for axis in self.order(len(shape))]
        return (self.samples(shape) if samples is None else samples, *rest)

    def samples_first(self, value: Tensor) -> Tensor:
        """Return a value of this layout with its samples first.

        Example:
            >>> import torch
            >>> Layout(0, after=2).samples_first(torch.arange(4)[:, None]).squeeze(-1)
            tensor([[0, 1],
                    [2, 3]])
        """
        shape = value.shape
        split = (*shape[: self.axis], self.before, self.samples(shape), self.after, *shape[self.axis + 1 :])
        return value.reshape(split).movedim(self.axis + 1, 0).reshape(self.first(shape))

    def moved(self, axis: int) -> Layout:
        """Return the layout with the samples on another axis."""
        return Layout(axis, self.before, self.after)

    def reshaped(self, before: Sequence[int], after: Sequence[int]) -> Layout | None:
        """Return the layout after a change of shape that keeps the order of elements; None if it tears samples apart.

        Args:
            before: the shape that the layout is for.
            after: the new shape.
        """
        samples, stride = self.samples(before), self.after * math.prod(before[self.axis + 1 :])
        for axis, size in enumerate(after):
            behind = math.prod(after[axis + 1 :])
            if size > 1 and behind <= stride < behind * size:
                inner = stride // behind
                whole = stride % behind == 0 and size % (samples * inner) == 0
                return Layout(axis, size // (samples * inner), inner) if whole else None
        return None


FIRST = Layout(0)
"""Samples on axis 0, with nothing folded."""
