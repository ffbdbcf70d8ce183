"""Sums over the pairs of each unit: in torch, and compiled for the CPU, where one pass needs no temporary tensors.

Axis letters: ``m`` pairs, ``b`` samples, ``h`` units, ``D`` inputs of a unit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agt_lightning.aggregation.top_n import top_n_sum
from agt_lightning.arithmetic.compiled import Array, compiled, readable
from agt_lightning.domains.ball.unstable import Pairs

Integers = NDArray[np.int64]


class UnitKernel:
    """Sums over the pairs of each unit, in plain torch, for every device.

    Args:
        pairs: sorted by unit.
        units: their number, h.
    """

    def __init__(self, pairs: Pairs, units: int) -> None:
        self.sample = pairs.sample
        self.counts = torch.bincount(pairs.unit, minlength=units)

    def _split(self, values: Tensor) -> Iterator[Tensor]:
        """Yield the values (m, ...) of each unit."""
        yield from values.split(self.counts.tolist())

    def largest(self, values: Tensor, n: int) -> Tensor:
        """Return the sum of the n largest values of each unit, (h,).

        Args:
            values: nonnegative, (m,).
            n: at least 0.
        """
        return torch.cat([top_n_sum(own[None], n) for own in self._split(values)])

    def vectors(self, rows: Tensor, factors: Tensor) -> Tensor:
        """Return ``Σ_i factor_ij row_i`` of each unit, (h, D).

        Args:
            rows: of each sample, (b, D).
            factors: (m,).
        """
        own = zip(self._split(rows.index_select(0, self.sample)), self._split(factors), strict=True)
        return torch.stack([row.T @ factor for row, factor in own])

    def outer_products(self, rows: Tensor, factors: Tensor) -> Tensor:
        """Return ``Σ_i factor_ij row_i row_iᵀ`` of each unit, (h, D, D).

        Args:
            rows: of each sample, (b, D).
            factors: (m,).
        """
        own = zip(self._split(rows.index_select(0, self.sample)), self._split(factors), strict=True)
        return torch.stack([(row * factor[:, None]).T @ row for row, factor in own])


class CompiledUnitKernel(UnitKernel):
    """The same for tensors on a CPU.

    Example:
        >>> pairs = Pairs(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
        >>> CompiledUnitKernel(pairs, 2).largest(torch.tensor([1.0, 3.0, 2.0]), n=1)
        tensor([3., 2.])
    """

    def largest(self, values: Tensor, n: int) -> Tensor:
        """Return the sum of the n largest values of each unit, (h,)."""
        totals = values.new_zeros(len(self.counts))
        if n > 0:
            add_largest(self.counts.numpy(), values.numpy(), n, totals.numpy())
        return totals

    def vectors(self, rows: Tensor, factors: Tensor) -> Tensor:
        """Return ``Σ_i factor_ij row_i`` of each unit, (h, D)."""
        totals = rows.new_zeros(len(self.counts), rows.shape[1])
        add_rows(self.counts.numpy(), self.sample.numpy(), rows.numpy(), factors.numpy(), totals.numpy())
        return totals

    def outer_products(self, rows: Tensor, factors: Tensor) -> Tensor:
        """Return ``Σ_i factor_ij row_i row_iᵀ`` of each unit, (h, D, D)."""
        totals = rows.new_zeros(len(self.counts), rows.shape[1], rows.shape[1])
        add_outer_products(self.counts.numpy(), self.sample.numpy(), rows.numpy(), factors.numpy(), totals.numpy())
        return totals


def kernel_for(pairs: Pairs, units: int, like: Tensor) -> UnitKernel:
    """Return the fastest kernel for tensors of the type and in the memory of ``like``."""
    return (CompiledUnitKernel if readable(like) else UnitKernel)(pairs, units)


@compiled
def add_largest(counts: Integers, values: Array, n: int, totals: Array) -> None:
    """Add the n largest values of each unit to its total.

    Args:
        counts: pairs of each unit, (h,).
        values: (m,).
        n: at least 1.
        totals: (h,).
    """
    start = 0
    for unit in range(len(counts)):
        own = values[start : start + counts[unit]]
        start += counts[unit]
        if len(own) > n:
            own = np.partition(own, len(own) - n)[len(own) - n :]  # NaN counts as the largest number
        for i in range(len(own)):
            totals[unit] += own[i]


@compiled
def add_rows(counts: Integers, samples: Integers, rows: Array, factors: Array, totals: Array) -> None:
    """Add ``Σ_i factor_ij row_i`` to the total of each unit.

    Args:
        counts: pairs of each unit, (h,).
        samples: of each pair, (m,).
        rows: of each sample, (b, D).
        factors: (m,).
        totals: (h, D).
    """
    pair = 0
    for unit in range(len(counts)):
        total = totals[unit]
        for _ in range(counts[unit]):
            row, factor = rows[samples[pair]], factors[pair]
            for k in range(len(total)):
                total[k] += factor * row[k]
            pair += 1


@compiled
def add_outer_products(counts: Integers, samples: Integers, rows: Array, factors: Array, totals: Array) -> None:
    """Add ``Σ_i factor_ij row_i row_iᵀ`` to the total of each unit.

    Args:
        counts: pairs of each unit, (h,).
        samples: of each pair, (m,).
        rows: of each sample, (b, D).
        factors: (m,).
        totals: (h, D, D).
    """
    pair = 0
    for unit in range(len(counts)):
        total = totals[unit]
        for _ in range(counts[unit]):
            row, factor = rows[samples[pair]], factors[pair]
            for k in range(len(row)):
                scaled = factor * row[k]
                for other in range(len(row)):
                    total[k, other] += scaled * row[other]
            pair += 1
