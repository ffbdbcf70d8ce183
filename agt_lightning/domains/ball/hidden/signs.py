"""Signs of hidden units, without a matrix of their size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from agt_lightning.domains.ball.pairs import Pairs, true_positions

_BLOCK = 2**16
"""Preactivations of a block: half a mebibyte in float64, which stays in the cache of one core."""


class Signs:
    """Which hidden units are on, block of samples by block of samples.

    A matrix of masks, magnitudes or activations costs more time than what is asked of it. So each question looks at the
    preactivations anew, through a block's matrix that is used again for the next block.

    Args:
        hidden: preactivations h, (b, h); a unit is on where they are positive.

    Example:
        >>> signs = Signs(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
        >>> signs.dots(torch.tensor([[1.0], [10.0]])).squeeze(1), signs.near(torch.tensor([1.5, 0.1])).unit
        (tensor([ 1., 11.]), tensor([0]))
    """

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Samples, their preactivations, and room for a matrix of the same size."""
        samples, units = self.hidden.shape
        size = max(1, _BLOCK // units) if self.hidden.device.type == "cpu" else samples
        room = self.hidden.new_empty(min(size, samples), units)
        for start in range(0, samples, size):
            block = self.hidden[start : start + size]
            yield slice(start, start + len(block)), block, room[: len(block)]

    def masks(self) -> Iterator[tuple[slice, Tensor]]:
        """Samples, and one for each unit that is on, zero for others; each block's matrix dies with the next."""
        for rows, block, room in self._blocks():
            yield rows, torch.gt(block, 0, out=room)

    def slopes(self, unsure: Pairs) -> Iterator[tuple[slice, Tensor]]:
        """The same with 1/2 for pairs that may be on or off."""
        for rows, mask in self.masks():
            mask.view(-1).index_fill_(0, unsure.within(rows).positions(mask.shape[1]), 0.5)
            yield rows, mask

    def activations(self) -> Iterator[tuple[slice, Tensor]]:
        """Samples, and relu(h); each block's matrix dies with the next."""
        for rows, block, room in self._blocks():
            yield rows, torch.clamp(block, min=0, out=room)

    def activation_norm(self) -> Tensor:
        """``‖relu(h)‖``, (b,)."""
        return torch.cat([activations.norm(dim=1) for _, activations in self.activations()])

    def near(self, within: Tensor, along: Tensor | None = None) -> Pairs:
        """Pairs with ``|h_ij| <= within_i + along_ij``.

        Args:
            within: (b,).
            along: (b, h), or (1, h) if it is the same for all samples; None means zero.
        """
        found, units = [], self.hidden.shape[1]
        along = self.hidden.new_zeros(1, units) if along is None else along
        for rows, block, room in self._blocks():
            beyond = torch.abs(block, out=room).sub_(within[rows, None])
            found.append(true_positions(beyond <= rows_of(along, rows)) + rows.start * units)
        return Pairs.at(torch.cat(found), units)

    def dots(self, columns: Tensor) -> Tensor:
        """Sums of rows of ``columns``, (h, q), over the units that are on, (b, q)."""
        return torch.cat([mask @ columns for _, mask in self.masks()])


def rows_of(values: Tensor, rows: slice) -> Tensor:
    """The given samples' rows of a matrix (b, ...), or the one row of a matrix (1, ...) that stands for all."""
    return values if len(values) == 1 else values[rows]
