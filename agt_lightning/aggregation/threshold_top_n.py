"""Top-n sums of gains whose inputs are points that both passes share: attacks on labels, at a first or frozen layer.

There the gain of sample i at output o and input k is ``a_oi z_ki⁺ + b_oi z_ki⁻``, at most ``E_o |z_ki|`` with the
largest slope ``E_o`` of output o. So samples with large inputs are looked at first: where the n-th largest gain among
them reaches ``E_o`` times the largest input that is left, no other sample counts. Outputs with a few very steep slopes
go on with the samples of these: what is left has both a smaller slope and a smaller input. Exact: rounding keeps the
order of products, and where these samples do not settle it either, all are looked at.

Reference:
    The threshold algorithm of Fagin, Lotem and Naor, Optimal aggregation algorithms for middleware, 2001.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.aggregation.top_n import largest, most_added, top_n_sum
from agt_lightning.gradients.differences import samples_last

_FIRST = 4
"""Samples that are looked at first, as a multiple of n: dead units and uneven slopes leave fewer than n of n."""

_STEEP = 8
"""Samples of the steepest slopes, as a multiple of n; only some outputs need them."""

_SAVED = 2
"""Looking at fewer than one in so many pays: picking samples out costs about as much as working on them."""

_LEAST = 4
"""Outputs from which on sorting the samples of an input pays."""

_PROBES = 4
"""Inputs that are tried first, to see whether their largest samples settle anything."""

_ENOUGH = 0.6
"""Share of the sums that they must settle: the others take the whole work after all."""

_COLUMNS = 16
"""Inputs that are read together."""

_CACHED = 2**16
"""Entries of a tensor that stays in the cache."""


def shared_input_sums(rise: Tensor, fall: Tensor, inputs: Tensor, n: int) -> tuple[Tensor, Tensor] | None:
    """Top-n sums of ``rise z⁺ + fall z⁻`` and of ``fall z⁺ + rise z⁻``: how far the upper and lower bounds can move.

    Args:
        rise: w (d̃U - dU), (o, m), on a CPU.
        fall: w (dL - d̃L), (o, m).
        inputs: z, (m, k).
        n: largest number of samples to take, at least 1.

    Returns:
        Both sums, (o, k); None where looking at all samples at once is cheaper.

    Example:
        >>> rise = torch.ones(4, 100)
        >>> up, down = shared_input_sums(rise, 2 * rise, torch.arange(100.0)[:, None], n=1)
        >>> up[0], down[0]
        (tensor([99.]), tensor([198.]))
    """
    samples, columns = inputs.shape
    if len(rise) < _LEAST or _SAVED * _FIRST * n > samples:
        return None
    search = _Search(torch.cat([rise, fall]), n)
    probes = torch.arange(_PROBES) * columns // _PROBES
    settled = [search.among_few(column)[1].double().mean() for column in samples_last(inputs[:, probes])]
    if float(torch.stack(settled).mean()) < _ENOUGH:
        return None
    sums = [
        search.sums(column)
        for start in range(0, columns, _COLUMNS)
        for column in samples_last(inputs[:, start : start + _COLUMNS])
    ]
    up, down = torch.stack(sums, dim=1).chunk(2)
    return up, down


@dataclass(frozen=True)
class _Search:
    """Sums for one input after another: of all upper bounds, then of all lower ones, (2 o,).

    Args:
        slopes: of positive inputs, (2 o, m); those of negative inputs are in the other half.
        n: largest number of samples to take.
    """

    slopes: Tensor
    n: int

    @cached_property
    def positive(self) -> _Steep:
        """The steepest samples for inputs that are not negative."""
        return _Steep.of(self.slopes, self.slopes, _STEEP * self.n)

    @cached_property
    def signed(self) -> _Steep:
        """The steepest samples for inputs of either sign."""
        opposite = self.slopes.roll(len(self.slopes) // 2, dims=0)
        return _Steep.of(self.slopes, torch.maximum(self.slopes, opposite), _STEEP * self.n)

    def sums(self, column: Tensor) -> Tensor:
        """Sums over all samples, of which most are not looked at.

        Args:
            column: the inputs, (m,).
        """
        sums, settled = self.among_few(column)
        for rows in (~settled).nonzero().squeeze(1).split(_CACHED // len(column) + 1):
            gains = self.slopes[rows] * column.clamp(min=0)
            if bool(column.min() < 0):
                gains.addcmul_(self.slopes[(rows + len(sums) // 2) % len(sums)], column.clamp(max=0).neg_())
            sums[rows] = top_n_sum(gains, self.n)
        return sums

    def among_few(self, column: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over samples of large inputs or steep slopes, and which of them are those over all samples."""
        steep = self.signed if bool(column.min() < 0) else self.positive
        chosen, largest_left = _largest_inputs(column.abs(), _FIRST * self.n)
        best = largest(self._gains(column, chosen), min(self.n, len(chosen)))
        sums, settled = best.clamp(min=0).sum(dim=1), _reached(best, steep.steepest * largest_left, len(column))
        rows = (~settled).nonzero().squeeze(1)
        if len(rows):
            others = column.index_fill(0, chosen, 0.0)
            best = largest(torch.cat([best[rows], steep.gains(others, rows)], dim=1), self.n)
            sums[rows] = best.clamp(min=0).sum(dim=1)
            settled[rows] = _reached(best, steep.moderate[rows] * largest_left, len(column))
        return sums, settled

    def _gains(self, column: Tensor, chosen: Tensor) -> Tensor:
        """Gains of some samples, (2 o, samples)."""
        values = column[chosen]
        gains = torch.from_numpy(self.slopes.numpy().take(chosen.numpy(), axis=1))
        negative = (values < 0).nonzero().squeeze(1)
        if len(negative):
            gains[:, negative] = gains[:, negative].roll(len(gains) // 2, dims=0)
        return gains.mul_(values.abs())


@dataclass(frozen=True)
class _Steep:
    """The samples of the steepest slopes of each output.

    Args:
        samples: their positions, (2 o, count).
        slopes: of positive inputs there, (2 o, count).
        opposite: of negative inputs there.
        moderate: an upper bound on all other slopes, (2 o,).
        steepest: an upper bound on all slopes, (2 o,).
    """

    samples: Tensor
    slopes: Tensor
    opposite: Tensor
    moderate: Tensor
    steepest: Tensor

    @classmethod
    def of(cls, slopes: Tensor, limits: Tensor, count: int) -> _Steep:
        """The largest of some limits.

        Args:
            slopes: of positive inputs, (2 o, m); those of negative inputs are in the other half.
            limits: at least as large as each slope that counts, (2 o, m).
            count: how many samples of each output.
        """
        rest = max(0, limits.shape[1] - count)
        samples = torch.from_numpy(limits.numpy().argpartition(rest, axis=1)[:, rest:])
        moderate = limits.scatter(1, samples, 0.0).amax(dim=1).clamp(min=0)
        opposite = slopes.roll(len(slopes) // 2, dims=0)
        tops = moderate, limits.amax(dim=1).clamp(min=0)
        return cls(samples, slopes.gather(1, samples), opposite.gather(1, samples), *tops)

    def gains(self, column: Tensor, rows: Tensor) -> Tensor:
        """Gains of these samples, (rows, count).

        Args:
            column: inputs of all samples, (m,); zero where they were looked at before.
            rows: some outputs.
        """
        values = torch.from_numpy(column.numpy().take(self.samples[rows].numpy()))
        gains = self.slopes[rows] * values.clamp(min=0)
        return gains.addcmul_(self.opposite[rows], values.clamp_(max=0), value=-1) if bool(column.min() < 0) else gains


def _reached(best: Tensor, limit: Tensor, samples: int) -> Tensor:
    """Whether the least of each row's best gains reaches what others are limited to."""
    return (best.amin(dim=1) - most_added(samples, best.dtype) >= limit) | (limit <= 0)


def _largest_inputs(sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions of the largest sizes in order of position, and a bound on those left out."""
    rest = len(sizes) - count
    if rest <= 0:
        return torch.arange(len(sizes)), sizes.new_zeros(())
    order = torch.from_numpy(sizes.numpy().argpartition(rest - 1))
    return order[rest:].sort().values, sizes[order[rest - 1]]
