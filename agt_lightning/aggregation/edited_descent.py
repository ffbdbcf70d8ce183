"""Bounds on the descent direction of a batch from which samples are deleted, and into which others are inserted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.aggregation.rounded_sums import CLIPPED_ROUNDINGS
from agt_lightning.aggregation.sample_clipping import Clipping
from agt_lightning.aggregation.weighted_sums import SampleSet, blocks
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval


@dataclass(frozen=True)
class BatchEdits:
    """Up to n insertions and deletions in one batch of b samples, all of which have the same weight.

    Args:
        n: number of samples that are inserted or deleted, together.
        weights: weight w > 0 of each sample in a batch of ``b + change`` samples, by change: all that can be reached.
    """

    n: int
    weights: Mapping[int, float]

    @staticmethod
    def changes(n: int, removable: int) -> range:
        """Return the changes of a batch's size, if so many of its samples can be deleted.

        Example:
            >>> BatchEdits.changes(3, removable=2)
            range(-2, 4)
        """
        return range(-min(n, removable), n + 1)


def edited_descent(
    gradient: FactoredGradient,
    samples: SampleSet,
    edits: BatchEdits,
    clipping: Clipping,
    budget: int,
    arithmetic: Arithmetic | None = None,
) -> Interval:
    """Bound the weighted sum of clipped gradients if up to n samples are inserted or deleted.

    For each size of the batch, with j samples that came and ν that went, the upper bound is
    ``w (Σ_i δ_U,i - (sum of the ν smallest) + j κ)``, and the largest of them holds for all.

    Args:
        gradient: bounds before clipping, for the data as it is.
        samples: of the batch; those that are poisonable can be deleted.
        edits: how many edits there can be, and the weights that they lead to.
        clipping: the clipping that training applies.
        budget: memory for temporary tensors, in bytes.
        arithmetic: of the sum of clipped gradients; None means the bounds' own alone.

    Returns:
        Interval of the parameter's shape.

    Reference:
        docs/theory.md, eq. (5.4).
    """
    arithmetic = arithmetic or Arithmetic(None, samples.weights.dtype)
    roundings = len(samples.weights) + edits.n + CLIPPED_ROUNDINGS
    kappa = clipping.kappa * (1 + arithmetic.relative(roundings))
    parts = []
    for start, stop in blocks(gradient, budget):
        block = arithmetic.outward(clipping(gradient.block(start, stop)), roundings)
        upper = _largest(block.upper, samples, edits, kappa)
        lower = -_largest(-block.lower, samples, edits, kappa)
        parts.append(Arithmetic(None, block.dtype).outward(Interval.trusted(lower, upper)))
    return Interval.cat(parts).rearranged(lambda bound: bound.reshape(gradient.shape))


def _largest(values: Tensor, samples: SampleSet, edits: BatchEdits, kappa: float) -> Tensor:
    """Return the largest weighted sum that edits can make of upper bounds (e, b), rounded up, (e,)."""
    removable = min(edits.n, samples.poisonable_count)
    least = samples.select(values).topk(removable, dim=1, largest=False).values.sort(dim=1).values
    gone = torch.cat([torch.zeros_like(values[:, :1]), least.cumsum(dim=1)], dim=1)
    magnitude = values.abs().sum(dim=1) + 2 * edits.n * kappa
    own = Arithmetic(None, values.dtype)
    total = values.sum(dim=1) + own.relative(values.shape[1] + 3 * edits.n + 8) * magnitude
    candidates = [
        weight * (total - gone[:, count] + (count + change) * kappa)
        for change, weight in edits.weights.items()
        for count in (min(samples.poisonable_count, (edits.n - change) // 2),)
    ]
    return torch.stack(candidates).amax(dim=0)
