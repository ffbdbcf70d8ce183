"""Bounds on the descent direction of one step, from per-sample bounds and an adversary.

``[δ_L,i, δ_U,i]`` bounds the gradient of sample i as it is (equation 6), ``[δ̃_L,i, δ̃_U,i]`` that of the poisoned sample
(equation 7), and w_i is its weight in the loss, 1/b for a mean. Theorem 3.4 reads

    Δ_U = Σ_i w_i δ_U,i + SEMax_n { w_i (δ̃_U,i - δ_U,i) },
    Δ_L = Σ_i w_i δ_L,i - SEMax_n { w_i (δ_L,i - δ̃_L,i) },

and Theorem D.1, for gradients clipped to [-κ, κ],

    Δ_U = Σ_i w_i δ_U,i + SEMax_n { w_i (κ - δ_U,i) },
    Δ_L = Σ_i w_i δ_L,i - SEMax_n { w_i (κ + δ_L,i) },

both with SEMax_n, the sum of the n largest, element by element over the samples that can be poisoned. If an adversary
owns sources, the gains of each source are added up before the n largest are taken (docs/theory.md, eq. (17.2)). The
parameter is expanded in blocks (elements, samples) of all samples, so the sums are exact and memory stays within a
budget.
"""

import torch
from torch import Tensor

from agt_lightning.aggregation.gains import sum_if_all_poisoned, top_n_gains
from agt_lightning.aggregation.rounded_sums import CLIPPED_ROUNDINGS
from agt_lightning.aggregation.sample_clipping import Clipping
from agt_lightning.aggregation.top_n import top_n_sum
from agt_lightning.aggregation.weighted_sums import SampleSet, blocks, weighted_sum
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.gradients import FactoredGradient, merged
from agt_lightning.interval import Interval


def bounded_descent(
    clean: FactoredGradient, poisoned: FactoredGradient | None, samples: SampleSet, n: int, budget: int
) -> Interval:
    """Bound ``Σ w_i ∇ℓ_i`` if up to n samples are poisoned within the adversary's balls (Theorem 3.4).

    Args:
        clean: bounds for the data as it is (equation 6).
        poisoned: bounds for each poisonable sample under the adversary (equation 7); None if nothing can be poisoned.
        samples: weights and poisonable samples.
        n: number of samples the adversary can change, or of sources, if ``samples`` name these.
        budget: memory for temporary tensors, in bytes.

    Returns:
        Interval of the parameter's shape.
    """
    total = weighted_sum(clean, samples.weights, budget)
    if poisoned is None or n == 0:
        return total
    if n >= samples.choices:
        all_poisoned = sum_if_all_poisoned(merged(clean), merged(poisoned), samples, budget)
        if all_poisoned is not None:
            return all_poisoned.hull(total)  # contains `total`, except for rounding
    increase, decrease = top_n_gains(clean, poisoned, samples, n, budget)
    return moved_outward(total, increase, decrease, summands=samples.summands(n) + clean.samples * clean.positions)


def moved_outward(total: Interval, increase: Tensor, decrease: Tensor, summands: int) -> Interval:
    """Return ``[L - decrease, U + increase]``, rounded outward.

    The gains of up to n samples are differences of rounded products. A clean product that a gain takes back has passed
    through the roundings of the whole total. It is at most the gain plus the poisoned product, whose widened factor
    covers its own part (docs/floats.md, section 5); the part of the gain, the sum of the gains and this last sum are
    covered here.

    Args:
        total: bounds without poison.
        increase: sum of at most ``summands`` nonnegative numbers, as computed.
        decrease: likewise.
        summands: number of gains in each sum, and of products in the total.

    Example:
        >>> moved_outward(Interval.point(torch.zeros(1)), torch.ones(1), torch.zeros(1), 2).upper > 1
        tensor([True])
    """
    own = Arithmetic(None, total.dtype)
    factor = 1 + own.relative(summands)
    moved = Interval.trusted(total.lower - decrease * factor, total.upper + increase * factor)
    return own.outward(moved)


def unbounded_descent(
    gradient: FactoredGradient,
    samples: SampleSet,
    n: int,
    clipping: Clipping,
    budget: int,
    arithmetic: Arithmetic | None = None,
) -> Interval:
    """Bound the weighted mean of clipped gradients if up to n samples are substituted (Theorem D.1).

    Args:
        gradient: bounds before clipping, for the data as it is.
        samples: weights and poisonable samples.
        n: number of samples the adversary can substitute, or of sources, if ``samples`` name these.
        clipping: the clipping that training applies.
        budget: memory for temporary tensors, in bytes.
        arithmetic: of the sum of clipped gradients; None means the bounds' own alone.

    Returns:
        Interval of the parameter's shape.
    """
    parts = []
    weights = samples.select(samples.weights)
    arithmetic = arithmetic or Arithmetic(None, weights.dtype)
    roundings = len(samples.weights) + CLIPPED_ROUNDINGS
    kappa = clipping.kappa * (1 + arithmetic.relative(roundings))
    for start, stop in blocks(gradient, budget):
        block = arithmetic.outward(clipping(gradient.block(start, stop)), roundings)
        gain_up = (kappa - samples.select(block.upper)) * weights
        gain_down = (kappa + samples.select(block.lower)) * weights
        total = Interval.trusted(block.lower @ samples.weights, block.upper @ samples.weights)
        increase, decrease = (top_n_sum(gain, n, samples.membership) for gain in (gain_up, gain_down))
        parts.append(moved_outward(total, increase, decrease, samples.summands(n) + len(samples.weights)))
    return Interval.cat(parts).rearranged(lambda bound: bound.reshape(gradient.shape))


def clipped_mean(gradient: FactoredGradient, weights: Tensor, clipping: Clipping, budget: int) -> Tensor:
    """Compute ``Σ w_i clip(∇ℓ_i)`` for gradients that are points (Algorithm 1, line 6)."""
    rows = [clipping(gradient.block(start, stop)).lower @ weights for start, stop in blocks(gradient, budget)]
    return torch.cat(rows).reshape(gradient.shape)
