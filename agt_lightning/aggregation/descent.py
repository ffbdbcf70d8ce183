"""Bounds on the descent direction of one step, from per-sample bounds and an adversary.

Weights w_i stand beside the per-sample gradients (1/b for a mean). Theorem 3.4 reads

    Δ_U = Σ_i w_i δ_U,i + SEMax_n { w_i (δ̃_U,i - δ_U,i) },

and Theorem D.1, for gradients clipped to [-κ, κ],

    Δ_U = Σ_i w_i δ_U,i + SEMax_n { w_i (κ - δ_U,i) },

both with the top-n over the samples that can be poisoned, and mirrored below. The parameter is expanded block by block
with all samples at hand, so the top-n is exact and memory stays within a budget.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.aggregation.clipping import Clipping
from agt_lightning.aggregation.shared_inputs import shared_input_sums
from agt_lightning.aggregation.slices import in_slices
from agt_lightning.aggregation.top_n import top_n_sum
from agt_lightning.gradients import FactoredGradient, OuterDifferences, differences_between
from agt_lightning.interval import Interval

_COPIES = 10
"""Temporary tensors of one block's size that are alive at once: both passes' bounds, their products, the gains."""

_CACHED = 2**17
"""Entries of a tensor that stays in the cache of one CPU core, with the few others that a tile takes."""


_LOOKED_AT = 256
"""Samples whose factors are compared together: patches of images are many times as large as the images."""


@dataclass(frozen=True)
class SampleSet:
    """The samples of one optimizer step.

    Args:
        weights: w_i >= 0, shape (b,), float64.
        poisonable: positions of the samples that can be poisoned, shape (m,); None means all.
    """

    weights: Tensor
    poisonable: Tensor | None = None

    def select(self, values: Tensor) -> Tensor:
        """Poisonable columns of a (..., b) tensor."""
        return values if self.poisonable is None else values[..., self.poisonable]


def bounded_descent(
    clean: FactoredGradient, poisoned: FactoredGradient | None, samples: SampleSet, n: int, budget: int
) -> Interval:
    """Theorem 3.4: bounds on ``Σ w_i ∇ℓ_i`` if up to n samples are poisoned within the adversary's balls.

    Args:
        clean: bounds for the data as it is (equation 6).
        poisoned: bounds for each poisonable sample under the adversary (equation 7); None if nothing can be poisoned.
        samples: weights and poisonable samples.
        n: number of samples the adversary can change.
        budget: memory for temporary tensors, in bytes.

    Returns:
        Interval of the parameter's shape.
    """
    total = _clean_total(clean, samples.weights, budget)
    if poisoned is None or n == 0:
        return total
    if n >= len(samples.select(samples.weights)):
        everywhere = _all_poisoned(clean, poisoned, samples, budget)
        if everywhere is not None:
            return everywhere.hull(total)  # which it contains but for rounding
    threads = torch.get_num_threads() if samples.weights.device.type == "cpu" else 1

    def sums(clean: FactoredGradient, poisoned: FactoredGradient) -> tuple[Tensor, Tensor]:
        up, down = _top_n_sums(clean, poisoned, samples, n, budget // threads)
        return up.reshape(clean.shape), down.reshape(clean.shape)

    up, down = in_slices(sums, clean, poisoned, threads)
    return Interval.trusted(total.lower - down, total.upper + up)


def _all_poisoned(
    clean: FactoredGradient, poisoned: FactoredGradient, samples: SampleSet, budget: int
) -> Interval | None:
    """``Σ w_i δ̃_i`` over poisonable samples and ``Σ w_i δ_i`` over all others: no gain is looked at on its own.

    None where matrix products do not tell it, or some gain might be negative, which nobody takes.
    """
    reachable = poisoned.total(samples.select(samples.weights)) if _reaches_beyond(clean, poisoned, samples) else None
    if reachable is None or samples.poisonable is None:
        return reachable
    others = samples.weights.index_fill(0, samples.poisonable, 0.0)
    return reachable + _clean_total(clean, others, budget)


def _reaches_beyond(clean: FactoredGradient, poisoned: FactoredGradient, samples: SampleSet) -> bool:
    """Whether factors of each poisoned gradient contain those of the clean one, so its bounds do as well."""
    before, after = clean.factors(), poisoned.factors()
    if before is None or after is None:
        return False
    every = torch.arange(poisoned.samples, device=samples.weights.device)
    places = every if samples.poisonable is None else samples.poisonable
    return all(
        _contains(after.outputs[rows], before.outputs[own]) and _contains(after.inputs(rows), before.inputs(own))
        for rows, own in zip(every.split(_LOOKED_AT), places.split(_LOOKED_AT), strict=True)
    )


def _contains(wide: Interval, narrow: Interval) -> bool:
    return bool(((narrow.lower >= wide.lower) & (narrow.upper <= wide.upper)).all())


def _top_n_sums(
    clean: FactoredGradient, poisoned: FactoredGradient, samples: SampleSet, n: int, budget: int
) -> tuple[Tensor, Tensor]:
    """``SEMax_n`` of the gains of both bounds, for the parameter as a matrix of its first axis and all others."""
    weights = samples.select(samples.weights)
    differences = differences_between(clean, poisoned, weights, samples.poisonable)
    on_cpu = weights.device.type == "cpu"
    if on_cpu and isinstance(differences, OuterDifferences) and differences.shared_points is not None:
        sums = shared_input_sums(*differences.moves(), differences.shared_points, n)
        if sums is not None:
            return sums
    up, down = (weights.new_zeros(clean.elements // clean.row, clean.row) for _ in range(2))
    entries = budget // (8 * _COPIES)
    for tile in differences.tiles(min(entries, _CACHED) if on_cpu else entries):
        place = (up if tile.up else down)[tile.rows, tile.columns]
        place.copy_(top_n_sum(tile.gains, n).reshape(place.shape))
    return up, down


def _clean_total(clean: FactoredGradient, weights: Tensor, budget: int) -> Interval:
    """``Σ w_i δ_i``, by matrix products if they can tell it."""
    total = clean.total(weights)
    if total is not None:
        return total
    lowers, uppers = [], []
    for start, stop in _blocks(clean, budget):
        block = clean.block(start, stop)
        lowers.append(block.lower @ weights)
        uppers.append(block.upper @ weights)
    return Interval.trusted(torch.cat(lowers).reshape(clean.shape), torch.cat(uppers).reshape(clean.shape))


def unbounded_descent(
    gradient: FactoredGradient, samples: SampleSet, n: int, clipping: Clipping, budget: int
) -> Interval:
    """Theorem D.1, weighted: bounds on the mean of clipped gradients if up to n samples are substituted.

    Args:
        gradient: bounds before clipping, for the data as it is.
        samples: weights and poisonable samples.
        n: number of samples the adversary can substitute.
        clipping: the clipping that training applies.
        budget: memory for temporary tensors, in bytes.

    Returns:
        Interval of the parameter's shape.
    """
    lowers, uppers = [], []
    weights = samples.select(samples.weights)
    for start, stop in _blocks(gradient, budget):
        block = clipping(gradient.block(start, stop))
        gain_up = (clipping.kappa - samples.select(block.upper)) * weights
        gain_down = (clipping.kappa + samples.select(block.lower)) * weights
        uppers.append(block.upper @ samples.weights + top_n_sum(gain_up, n))
        lowers.append(block.lower @ samples.weights - top_n_sum(gain_down, n))
    return Interval.trusted(torch.cat(lowers).reshape(gradient.shape), torch.cat(uppers).reshape(gradient.shape))


def clipped_mean(gradient: FactoredGradient, weights: Tensor, clipping: Clipping, budget: int) -> Tensor:
    """``Σ w_i clip(∇ℓ_i)`` for gradients that are points (Algorithm 1, line 6)."""
    rows = [clipping(gradient.block(start, stop)).lower @ weights for start, stop in _blocks(gradient, budget)]
    return torch.cat(rows).reshape(gradient.shape)


def _blocks(gradient: FactoredGradient, budget: int) -> Iterator[tuple[int, int]]:
    """Ranges of elements whose expansion fits the budget: whole rows, or parts of one if a row is too large."""
    elements = max(1, budget // (gradient.samples * 8 * _COPIES))
    if elements >= gradient.row:
        size = elements - elements % gradient.row
        for start in range(0, gradient.elements, size):
            yield start, min(start + size, gradient.elements)
        return
    for row in range(0, gradient.elements, gradient.row):
        for start in range(row, row + gradient.row, elements):
            yield start, min(start + elements, row + gradient.row)
