"""Top-n sums of gains by the threshold algorithm, if both passes have the same point inputs.

That is the case for attacks on labels, at a first or frozen layer. The gain of sample i at output o and input k is then
``a_oi z_ki⁺ + b_oi z_ki⁻``, at most ``E_o |z_ki|`` with the largest slope ``E_o`` of output o. Like the threshold
algorithm, the search takes candidates in order of a factor, here the 4 n samples of the largest inputs, and stops if
the n-th largest gain among them is at least the threshold, ``E_o`` times the largest input of the other samples: no
other sample can be among the n largest. For the remaining outputs, which have a few very steep slopes, the samples of
these become candidates as well; the other samples then have both a smaller slope and a smaller input. Sums that are not
final after that are computed from all samples.

The result is exact: rounding keeps the order of products. What it saves is the work of forming and selecting from m
gains for each element of the parameter; if sums are final after the first step, 4 n gains are enough. With slopes of
similar size, 10 000 samples and n = 10 to 200, the search takes a third to a twentieth of the time of all gains.

Reference:
    Fagin, Lotem and Naor, Optimal aggregation algorithms for middleware, Journal of Computer and System Sciences 66,
    2003: the threshold algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.aggregation.top_n import largest, most_added, top_n_sum
from agt_lightning.gradients.differences import samples_last

_CANDIDATES = 4
"""Candidates by input, as a multiple of n: with dead units or uneven slopes, n candidates have too few gains."""

_STEEPEST = 8
"""Candidates by slope, as a multiple of n; only some outputs need them."""

_MIN_SAVING = 2
"""Samples per candidate from which on the search pays: gathering a sample costs about as much as its gain."""

_MIN_OUTPUTS = 4
"""Outputs from which on sorting the samples of an input pays."""

_PROBES = 4
"""Inputs that are tried first, to estimate how many sums the candidates decide."""

_MIN_FINAL_SHARE = 0.6
"""Share of the sums that candidates must decide: the others need all samples after all."""

_COLUMNS_READ = 16
"""Inputs that are read together."""

_CACHED = 2**16
"""Entries of a tensor that fits in the cache."""


def shared_input_sums(up_gains: Tensor, down_gains: Tensor, inputs: Tensor, n: int) -> tuple[Tensor, Tensor] | None:
    """Compute the top-n sums of gains of the upper bounds, ``a z⁺ + b z⁻``, and of the lower ones, ``b z⁺ + a z⁻``.

    Args:
        up_gains: a = w (d̃_U - d_U), gains of the outputs alone, (o, m), on a CPU.
        down_gains: b = w (d_L - d̃_L), (o, m).
        inputs: z, (m, k).
        n: largest number of samples in a sum, at least 1.

    Returns:
        Both sums, (o, k); None if computing all gains is cheaper.

    Example:
        >>> gains = torch.ones(4, 100)
        >>> up, down = shared_input_sums(gains, 2 * gains, torch.arange(100.0)[:, None], n=1)
        >>> up[0], down[0]
        (tensor([99.]), tensor([198.]))
    """
    samples, columns = inputs.shape
    if len(up_gains) < _MIN_OUTPUTS or _MIN_SAVING * _CANDIDATES * n > samples:
        return None
    search = _ThresholdSearch(torch.cat([up_gains, down_gains]), n)
    probes = torch.arange(_PROBES) * columns // _PROBES
    final = [search.candidate_sums(column)[1].double().mean() for column in samples_last(inputs[:, probes])]
    if float(torch.stack(final).mean()) < _MIN_FINAL_SHARE:
        return None
    sums = [
        search.sums(column)
        for start in range(0, columns, _COLUMNS_READ)
        for column in samples_last(inputs[:, start : start + _COLUMNS_READ])
    ]
    up, down = torch.stack(sums, dim=1).chunk(2)
    return up, down


@dataclass(frozen=True)
class _ThresholdSearch:
    """A search for the top-n sums of one input after another: of the upper bounds, then of the lower ones, (2 o,).

    Args:
        slopes: factors of positive inputs, (2 o, m); those of negative inputs are in the other half.
        n: largest number of samples in a sum.
    """

    slopes: Tensor
    n: int

    @cached_property
    def positive(self) -> _SteepestSamples:
        """The samples of the steepest slopes for nonnegative inputs."""
        return _SteepestSamples.of(self.slopes, self.slopes, _STEEPEST * self.n)

    @cached_property
    def signed(self) -> _SteepestSamples:
        """The samples of the steepest slopes for inputs of either sign."""
        opposite = self.slopes.roll(len(self.slopes) // 2, dims=0)
        return _SteepestSamples.of(self.slopes, torch.maximum(self.slopes, opposite), _STEEPEST * self.n)

    def sums(self, column: Tensor) -> Tensor:
        """Compute the top-n sums over all samples, from candidates where these decide them.

        Args:
            column: the inputs, (m,).
        """
        sums, final = self.candidate_sums(column)
        for rows in (~final).nonzero().squeeze(1).split(_CACHED // len(column) + 1):
            gains = self.slopes[rows] * column.clamp(min=0)
            if bool(column.min() < 0):
                gains.addcmul_(self.slopes[(rows + len(sums) // 2) % len(sums)], column.clamp(max=0).neg_())
            sums[rows] = top_n_sum(gains, self.n)
        return sums

    def candidate_sums(self, column: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the sums over samples of large inputs or steep slopes.

        Returns:
            The sums, (2 o,), and whether each of them is final: equal to the sum over all samples.
        """
        steepest = self.signed if bool(column.min() < 0) else self.positive
        candidates, largest_remaining = _largest_inputs(column.abs(), _CANDIDATES * self.n)
        best = largest(self._gains(column, candidates), min(self.n, len(candidates)))
        sums = best.clamp(min=0).sum(dim=1)
        final = _above_threshold(best, steepest.slope_limit * largest_remaining, len(column))
        rows = (~final).nonzero().squeeze(1)
        if len(rows):
            others = column.index_fill(0, candidates, 0.0)
            best = largest(torch.cat([best[rows], steepest.gains(others, rows)], dim=1), self.n)
            sums[rows] = best.clamp(min=0).sum(dim=1)
            final[rows] = _above_threshold(best, steepest.other_slopes_limit[rows] * largest_remaining, len(column))
        return sums, final

    def _gains(self, column: Tensor, candidates: Tensor) -> Tensor:
        """Compute the gains of the candidates, (2 o, candidates)."""
        values = column[candidates]
        gains = torch.from_numpy(self.slopes.numpy().take(candidates.numpy(), axis=1))
        negative = (values < 0).nonzero().squeeze(1)
        if len(negative):
            gains[:, negative] = gains[:, negative].roll(len(gains) // 2, dims=0)
        return gains.mul_(values.abs())


@dataclass(frozen=True)
class _SteepestSamples:
    """The samples of the steepest slopes of each output.

    Args:
        samples: positions of the samples, (2 o, count).
        slopes: slopes at these samples for positive inputs, (2 o, count).
        opposite: slopes at these samples for negative inputs, (2 o, count).
        other_slopes_limit: an upper bound on all other slopes, (2 o,).
        slope_limit: an upper bound on all slopes, (2 o,).
    """

    samples: Tensor
    slopes: Tensor
    opposite: Tensor
    other_slopes_limit: Tensor
    slope_limit: Tensor

    @classmethod
    def of(cls, slopes: Tensor, limits: Tensor, count: int) -> _SteepestSamples:
        """Select the samples with the largest limits on slopes.

        Args:
            slopes: factors of positive inputs, (2 o, m); those of negative inputs are in the other half.
            limits: upper bounds on the slopes that matter for the signs of the inputs, (2 o, m).
            count: number of samples of each output.
        """
        rest = max(0, limits.shape[1] - count)
        samples = torch.from_numpy(limits.numpy().argpartition(rest, axis=1)[:, rest:])
        other_slopes_limit = limits.scatter(1, samples, 0.0).amax(dim=1).clamp(min=0)
        opposite = slopes.roll(len(slopes) // 2, dims=0)
        slope_limit = limits.amax(dim=1).clamp(min=0)
        return cls(samples, slopes.gather(1, samples), opposite.gather(1, samples), other_slopes_limit, slope_limit)

    def gains(self, column: Tensor, rows: Tensor) -> Tensor:
        """Compute the gains of these samples, (rows, count).

        Args:
            column: inputs of all samples, (m,); zero for samples that are candidates already.
            rows: positions of some outputs, (rows,).
        """
        values = torch.from_numpy(column.numpy().take(self.samples[rows].numpy()))
        gains = self.slopes[rows] * values.clamp(min=0)
        return gains.addcmul_(self.opposite[rows], values.clamp_(max=0), value=-1) if bool(column.min() < 0) else gains


def _above_threshold(best: Tensor, threshold: Tensor, samples: int) -> Tensor:
    """Return whether the smallest of each row's best gains is at least the threshold, an upper bound on all others."""
    return (best.amin(dim=1) - most_added(samples, best.dtype) >= threshold) | (threshold <= 0)


def _largest_inputs(sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the positions of the largest sizes, in ascending order, and an upper bound on the other sizes."""
    rest = len(sizes) - count
    if rest <= 0:
        return torch.arange(len(sizes)), sizes.new_zeros(())
    order = torch.from_numpy(sizes.numpy().argpartition(rest - 1))
    return order[rest:].sort().values, sizes[order[rest - 1]]
