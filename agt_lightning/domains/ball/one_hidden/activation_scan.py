"""Which hidden units are active, without a matrix of their size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.unstable import Pairs, true_positions

_BLOCK = 2**16
"""Preactivations of a block: half a mebibyte in float64, which stays in the cache of one core."""


class ActivationScan:
    """The activation pattern of hidden units, block of samples by block of samples.

    Materializing the mask, or magnitudes or activations, is slower than recomputing it: each query scans the
    preactivations block by block and reuses one buffer.

    Args:
        hidden: preactivations h, (b, h); a unit is active where they are positive.

    Example:
        >>> scan = ActivationScan(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
        >>> stats = scan.stats(within=torch.tensor([1.5, 0.1]), more=None, values=torch.tensor([1.0, 10.0]))
        >>> stats.active_sum, stats.unstable.unit
        (tensor([ 1., 11.]), tensor([0]))
    """

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield samples, their preactivations, and a buffer of the same size."""
        samples, units = self.hidden.shape
        size = max(1, _BLOCK // units) if self.hidden.device.type == "cpu" else samples
        buffer = self.hidden.new_empty(min(size, samples), units)
        for start in range(0, samples, size):
            block = self.hidden[start : start + size]
            yield slice(start, start + len(block)), block, buffer[: len(block)]

    def masks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield samples, and 1 for each active unit, 0 for others; the next block overwrites the buffer."""
        for rows, block, buffer in self._blocks():
            yield rows, torch.gt(block, 0, out=buffer)

    def mean_slopes(self, unstable: Pairs) -> Iterator[tuple[slice, Tensor]]:
        """Yield the same with 1/2 for unstable units, whose slope is 1/2 ± 1/2."""
        positions = unstable.positions(self.hidden.shape[1])
        for rows, mask in self.masks():
            first, last = rows.start * mask.shape[1], rows.stop * mask.shape[1]
            here = slice(*torch.searchsorted(positions, positions.new_tensor([first, last])).tolist())
            mask.view(-1).index_fill_(0, positions[here] - first, 0.5)
            yield rows, mask

    def stats(self, within: Tensor, more: Tensor | None, values: Tensor) -> ActivationStats:
        """Compute all quantities of a step in one scan.

        Args:
            within: (b,).
            more: (b, h), or (1, h) if it is the same for all samples; units with ``|h_ij| <= within_i + more_ij`` are
                unstable. None means zero.
            values: (h,), to be summed over active units.
        """
        units = self.hidden.shape[1]
        norms, sums, positions, preactivations = [], [], [], []
        for rows, block, buffer in self._blocks():
            norms.append(euclidean_norm(torch.clamp(block, min=0, out=buffer), dim=1))
            sums.append(buffer.gt_(0) @ values)
            beyond = torch.abs(block, out=buffer).sub_(within[rows, None])
            here = true_positions(beyond <= (0 if more is None else rows_of(more, rows)))
            preactivations.append(block.reshape(-1).index_select(0, here))
            positions.append(here + rows.start * units)
        pairs = Pairs.at(torch.cat(positions), units)
        unstable = UnstablePreactivations(pairs.sample, pairs.unit, torch.cat(preactivations))
        return ActivationStats(torch.cat(norms), torch.cat(sums), unstable)


@dataclass(frozen=True)
class UnstablePreactivations(Pairs):
    """Unstable units with their preactivations.

    Args:
        sample: position of the sample, (m,), ascending.
        unit: position of the unit, (m,).
        hidden: h of each pair, (m,).
    """

    hidden: Tensor


@dataclass(frozen=True)
class ActivationStats:
    """Results of one scan of the preactivations.

    Args:
        activation_norm: ``‖relu(h)‖``, (b,).
        active_sum: sum of values over the units that are active, (b,).
        unstable: units close to zero.
    """

    activation_norm: Tensor
    active_sum: Tensor
    unstable: UnstablePreactivations


def rows_of(values: Tensor, rows: slice) -> Tensor:
    """Return rows of the given samples from a matrix (b, ...), or the only row of one (1, ...) that is for all."""
    return values if len(values) == 1 else values[rows]
