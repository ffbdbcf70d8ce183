"""Signs of hidden units, without a matrix of their size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
        >>> look = signs.look(within=torch.tensor([1.5, 0.1]), along=None, values=torch.tensor([1.0, 10.0]))
        >>> look.sum_on, look.near.unit
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
        positions = unsure.positions(self.hidden.shape[1])
        for rows, mask in self.masks():
            first, last = rows.start * mask.shape[1], rows.stop * mask.shape[1]
            here = slice(*torch.searchsorted(positions, positions.new_tensor([first, last])).tolist())
            mask.view(-1).index_fill_(0, positions[here] - first, 0.5)
            yield rows, mask

    def look(self, within: Tensor, along: Tensor | None, values: Tensor) -> Look:
        """What a step asks of all units, in one go.

        Args:
            within: (b,).
            along: (b, h), or (1, h) if it is the same for all samples; units with ``|h_ij| <= within_i + along_ij`` are
                near. None means zero.
            values: (h,), to be summed.
        """
        units = self.hidden.shape[1]
        norms, sums, found, values_found = [], [], [], []
        for rows, block, room in self._blocks():
            norms.append(torch.clamp(block, min=0, out=room).norm(dim=1))
            sums.append(room.gt_(0) @ values)
            beyond = torch.abs(block, out=room).sub_(within[rows, None])
            found.append(true_positions(beyond <= (0 if along is None else rows_of(along, rows))))
            values_found.append(block.reshape(-1).index_select(0, found[-1]))
            found[-1] += rows.start * units
        pairs = Pairs.at(torch.cat(found), units)
        near = NearUnits(pairs.sample, pairs.unit, torch.cat(values_found))
        return Look(torch.cat(norms), torch.cat(sums), near)


@dataclass(frozen=True)
class NearUnits(Pairs):
    """Pairs that are close to zero.

    Args:
        sample: position of the sample, (m,), ascending.
        unit: position of the unit, (m,).
        hidden: their preactivations, (m,).
    """

    hidden: Tensor

    def among(self, kept: Tensor) -> NearUnits:
        """Those that are true in ``kept``, (m,)."""
        pairs, chosen = super().among(kept), true_positions(kept)
        return NearUnits(pairs.sample, pairs.unit, self.hidden.index_select(0, chosen))


@dataclass(frozen=True)
class Look:
    """What one look at the preactivations finds.

    Args:
        activation_norm: ``‖relu(h)‖``, (b,).
        sum_on: sum of values over the units that are on, (b,).
        near: units close to zero.
    """

    activation_norm: Tensor
    sum_on: Tensor
    near: NearUnits


def rows_of(values: Tensor, rows: slice) -> Tensor:
    """The given samples' rows of a matrix (b, ...), or the one row of a matrix (1, ...) that stands for all."""
    return values if len(values) == 1 else values[rows]
