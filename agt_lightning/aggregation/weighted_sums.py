"""The samples of a step, and weighted sums of their gradient bounds within a memory budget."""

from collections.abc import Iterator
from dataclasses import dataclass

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
    """

    weights: Tensor
    poisonable: Tensor | None = None

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
