"""Pairs of a sample and a unit, kept one by one where few of them matter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Some pairs of a sample and a unit, by sample.

    Args:
        sample: position of the sample, (m,), ascending.
        unit: position of the unit, (m,).

    Example:
        >>> pairs = Pairs.where(torch.tensor([[True, False], [True, True]]))
        >>> pairs.sums(pairs.of(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), samples=2)
        tensor([1., 7.])
    """

    sample: Tensor
    unit: Tensor

    @classmethod
    def where(cls, chosen: Tensor) -> Pairs:
        """All pairs that are true in a matrix (b, h)."""
        return cls.at(true_positions(chosen), chosen.shape[1])

    @classmethod
    def at(cls, positions: Tensor, units: int) -> Pairs:
        """From ascending positions in a flat matrix of so many units."""
        sample = positions // units
        return cls(sample, positions - sample * units)

    def positions(self, units: int) -> Tensor:
        """Where they are in a flat matrix of so many units, (m,)."""
        return self.sample * units + self.unit

    def of(self, matrix: Tensor) -> Tensor:
        """Their entries of a matrix (b, h), or (1, h) with one row for all samples, (m,)."""
        if len(matrix) == 1:
            return self.by_unit(matrix[0])
        return matrix.reshape(-1).index_select(0, self.positions(matrix.shape[1]))

    def by_sample(self, values: Tensor) -> Tensor:
        """Values (b,) of their samples, (m,)."""
        return values.index_select(0, self.sample)

    def by_unit(self, values: Tensor) -> Tensor:
        """Values (h,) of their units, (m,)."""
        return values.index_select(0, self.unit)

    def among(self, kept: Tensor) -> Pairs:
        """Those that are true in ``kept``, (m,)."""
        chosen = true_positions(kept)
        return Pairs(self.sample.index_select(0, chosen), self.unit.index_select(0, chosen))

    def sums(self, values: Tensor, samples: int) -> Tensor:
        """Sum of ``values``, (m,), for each sample, (b,)."""
        return values.new_zeros(samples).index_add_(0, self.sample, values)


def true_positions(chosen: Tensor) -> Tensor:
    """Ascending positions at which a tensor is true, as if it were flat, (m,)."""
    if chosen.device.type != "cpu":
        return chosen.flatten().nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(chosen.numpy()))  # a quarter of the time that `nonzero` takes
