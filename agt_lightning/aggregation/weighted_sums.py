"""The samples of a step, and weighted sums of their gradient bounds within a memory budget."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.gradients import FactoredGradient, common_value
from agt_lightning.interval import Interval
from agt_lightning.memory import chunks

COPIES = 10
"""Temporary tensors of the size of a block that exist at once: bounds of both passes, their products, the gains."""


@dataclass(frozen=True)
class SampleSet:
    """The samples of one optimizer step.

    Args:
        weights: w_i >= 0, shape (b,), float64.
        poisonable: positions of the samples that can be poisoned, shape (m,); None if all can be.
        sources: an integer for the source of each sample, shape (b,), if an adversary changes all samples of a source
            or none; None if it chooses samples one by one.
    """

    weights: Tensor
    poisonable: Tensor | None = None
    sources: Tensor | None = None

    def select(self, values: Tensor) -> Tensor:
        """Select the columns of the poisonable samples, from (..., b) to (..., m)."""
        return values if self.poisonable is None else values[..., self.poisonable]

    @property
    def common_weight(self) -> float | None:
        """The weight that all samples have; None if they differ."""
        return common_value(self.weights)

    @property
    def poisonable_count(self) -> int:
        """The number m of samples that can be poisoned."""
        return len(self.weights) if self.poisonable is None else len(self.poisonable)

    @cached_property
    def membership(self) -> Tensor | None:
        """Ones where a poisonable sample belongs to a source, else zeros, (m, sources); None without sources.

        Example:
            >>> SampleSet(torch.ones(3), torch.tensor([0, 2]), torch.tensor([7, 8, 7])).membership
            tensor([[1.],
                    [1.]])
        """
        if self.sources is None:
            return None
        distinct, positions = self.select(self.sources).unique(return_inverse=True)
        table = self.weights.new_zeros(len(positions), len(distinct))
        return table.scatter_(1, positions[:, None], 1.0)

    @property
    def choices(self) -> int:
        """The number of samples that can be poisoned, or of sources that have such samples, if these are chosen."""
        return self.poisonable_count if self.membership is None else self.membership.shape[1]

    def summands(self, n: int) -> int:
        """Return a limit on the roundings of a nonnegative term in a sum of the n largest, sums of sources included."""
        return n if self.membership is None else n + self.poisonable_count


def weighted_sum(gradient: FactoredGradient, weights: Tensor, budget: int) -> Interval:
    """Bound ``Σ w_i δ_i`` by matrix products if the gradient has a closed form, else block by block.

    Args:
        gradient: bounds δ_i of each sample.
        weights: w_i >= 0, (b,).
        budget: memory for temporary tensors, in bytes.

    Returns:
        Interval of the parameter's shape.
    """
    total = gradient.total(weights)
    if total is not None:
        return total
    lowers, uppers = [], []
    for start, stop in blocks(gradient, budget):
        block = gradient.block(start, stop)
        lowers.append(block.lower @ weights)
        uppers.append(block.upper @ weights)
    return Interval.trusted(torch.cat(lowers).reshape(gradient.shape), torch.cat(uppers).reshape(gradient.shape))


def blocks(gradient: FactoredGradient, budget: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of elements whose expansion fits in the budget: whole rows, or parts of a row that is too large.

    Args:
        gradient: bounds of each sample.
        budget: memory for temporary tensors, in bytes.
    """
    row, element_bytes = gradient.row, gradient.samples * 8 * COPIES
    if row * element_bytes <= budget:
        for rows in chunks(gradient.elements // row, row * element_bytes, budget):
            yield rows.start * row, rows.stop * row
        return
    for start in range(0, gradient.elements, row):
        for part in chunks(row, element_bytes, budget):
            yield start + part.start, start + part.stop
