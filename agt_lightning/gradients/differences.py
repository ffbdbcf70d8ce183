"""What poisoning can add to the gradient of each sample: the differences in the top-n sums of Theorem 3.4.

For each element of a parameter and each poisonable sample i

    up = w_i (δ̃_U,i - δ_U,i),   down = w_i (δ_L,i - δ̃_L,i).

Axis letters: ``m`` poisonable samples, last in every tensor here; ``o`` outputs, ``k`` inputs of a layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.gradients.base import FactoredGradient
from agt_lightning.gradients.elementwise import Elementwise


@dataclass(frozen=True)
class Tile:
    """Gains of one bound at some elements of a parameter, as a matrix with its first axis as rows.

    Args:
        rows: rows of that matrix.
        columns: columns of that matrix.
        up: whether the gains are those of the upper bound.
        gains: (rows · columns, m). The caller may overwrite them; the next tile does.
    """

    rows: slice
    columns: slice
    up: bool
    gains: Tensor


class Differences(ABC):
    """Differences between the poisoned and clean bounds of one parameter's gradients."""

    @abstractmethod
    def tiles(self, entries: int) -> Iterator[Tile]:
        """Yield the gains of all elements, each element once for each bound.

        Args:
            entries: largest number of entries of ``gains``; a tile has one element at least.
        """


@dataclass(frozen=True)
class ExpandedDifferences(Differences):
    """Gains of gradients of any type: both bounds are expanded, then subtracted.

    Args:
        clean: bounds of all samples.
        poisoned: bounds of the poisonable samples.
        weights: w_i of the poisonable samples, (m,).
        poisonable: indices of the poisonable samples, (m,); None if all are.
    """

    clean: FactoredGradient
    poisoned: FactoredGradient
    weights: Tensor
    poisonable: Tensor | None

    def tiles(self, entries: int) -> Iterator[Tile]:
        """Yield whole rows, or parts of one row."""
        row = self.clean.row
        for rows, columns in tiling(self.clean.elements // row, row, entries // self.clean.samples):
            start, stop = rows.start * row + columns.start, (rows.stop - 1) * row + columns.stop
            clean, poisoned = self.clean.block(start, stop), self.poisoned.block(start, stop)
            yield Tile(rows, columns, True, (poisoned.upper - self._select(clean.upper)) * self.weights)
            yield Tile(rows, columns, False, (self._select(clean.lower) - poisoned.lower) * self.weights)

    def _select(self, bound: Tensor) -> Tensor:
        return bound if self.poisonable is None else bound[:, self.poisonable]


@dataclass(frozen=True)
class ElementwiseDifferences(Differences):
    """Gains of gradients that are stored as they are.

    Args:
        up: (elements, m).
        down: (elements, m).
        row: elements per row.
    """

    up: Tensor
    down: Tensor
    row: int

    @classmethod
    def between(
        cls, clean: Elementwise, poisoned: Elementwise, weights: Tensor, poisonable: Tensor | None
    ) -> ElementwiseDifferences:
        """Subtract before the samples move to the last axis; arguments as those of `ExpandedDifferences`."""
        same = clean.values if poisonable is None else clean.values[poisonable]
        up, down = poisoned.values.upper - same.upper, same.lower - poisoned.values.lower
        flat = [gain.reshape(len(weights), -1) * weights[:, None] for gain in (up, down)]
        return cls(samples_last(flat[0]), samples_last(flat[1]), clean.row)

    def tiles(self, entries: int) -> Iterator[Tile]:
        """Yield rows of both tensors."""
        for rows, columns in tiling(len(self.up) // self.row, self.row, entries // self.up.shape[1]):
            places = slice(rows.start * self.row + columns.start, (rows.stop - 1) * self.row + columns.stop)
            yield Tile(rows, columns, True, self.up[places])
            yield Tile(rows, columns, False, self.down[places])


def tiling(rows: int, columns: int, elements: int) -> Iterator[tuple[slice, slice]]:
    """Yield parts of a matrix: whole rows, or parts of one row.

    All rows of some columns follow each other, so that what is computed of columns can be reused.

    Args:
        rows: number of rows.
        columns: number of columns.
        elements: largest number of elements of a part; it has at least one.

    Example:
        >>> list(tiling(rows=2, columns=3, elements=2))[:2]
        [(slice(0, 1, None), slice(0, 2, None)), (slice(1, 2, None), slice(0, 2, None))]
    """
    width = max(1, min(columns, elements))
    height = max(1, elements // width)
    for left in range(0, columns, width):
        for top in range(0, rows, height):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


_ROWS, _COLUMNS = 512, 64
"""Size of the tiles in which a matrix is transposed; a tile stays in the cache."""


def samples_last(values: Tensor) -> Tensor:
    """Return the transpose of a matrix (b, p) as a contiguous one of shape (p, b).

    On a CPU it is copied tile by tile, since reading a large matrix column by column misses the cache at every entry.

    Example:
        >>> samples_last(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        tensor([[1., 3., 5.],
                [2., 4., 6.]])
    """
    samples, size = values.shape
    if values.device.type != "cpu":
        return values.T.contiguous()
    result = torch.empty(size, samples, dtype=values.dtype)
    source, target = values.detach().numpy(), result.numpy()
    for row in range(0, samples, _ROWS):
        for column in range(0, size, _COLUMNS):
            rows, columns = slice(row, row + _ROWS), slice(column, column + _COLUMNS)
            target[columns, rows] = source[rows, columns].T
    return result
