"""What the network's own curvature and its kinks add to a step, beside the positive semidefinite part."""

import math

import torch
from torch import Tensor

from agt_lightning.domains.ball.hidden.reach import HiddenReach
from agt_lightning.domains.ball.kinks import Kinks
from agt_lightning.domains.ball.norms import append_one, gram_norm, spectral_norms
from agt_lightning.domains.ball.pairs import Pairs
from agt_lightning.rounding import accumulated_roundoff


def curvature_norm(reach: HiddenReach, weights: Tensor) -> float:
    """Upper bound on ``‖A‖``: of the layers' diagonal blocks, which is at most their sum.

    Args:
        reach: all samples of the step.
        weights: weight of each sample times the largest curvature of its loss, (b,).
    """
    layer, half = reach.layer, reach.layer.radius / 2
    first = gram_norm(reach.samples.inputs, weights * (reach.weight_on + half).square(), layer.trains_first_bias)
    drift = float((weights @ reach.input_norm.square()).sqrt()) * half
    second = math.sqrt(gram_norm(reach.hidden.clamp(min=0), weights, layer.trains_second_bias)) + drift
    return first + second * second


def remainder(reach: HiddenReach, gradient: Tensor, change: Tensor, weights: Tensor) -> tuple[float, float]:
    """Upper bounds on ``‖E - J‖`` and ``‖J‖``, J the monotone kinks.

    Args:
        reach: all samples of the step.
        gradient: g_i, of the loss in the outputs at the nominal parameters, (b, K).
        change: upper bound on how far ‖g_i‖ moves over the ball, (b,).
        weights: weight of each sample in the loss, (b,).
    """
    layer, radius = reach.layer, reach.layer.radius
    size, norm = gradient.norm(dim=1), reach.input_norm
    # Rounding of the sums is relative to the sum of magnitudes.
    rounding = accumulated_roundoff(len(norm), norm.dtype) * size
    total = float(_coupling(reach, gradient, weights, weights * (change / 2 + rounding) * norm).max()) * radius
    kinks = Kinks.sorted(reach.near, reach.distance)
    pairs, share = kinks.pairs, kinks.pairs.by_sample(weights * norm)
    mean_size, own_change = pairs.by_sample(size + change / 2), pairs.by_sample(change)
    signal = _signal(pairs, gradient, layer.second)
    doubt = radius * mean_size + pairs.by_unit(layer.columns + radius / 2) * own_change
    total += kinks.largest_slip(share * mean_size, radius)
    total += kinks.largest_switch(share * (doubt - signal).clamp(min=0), radius)
    return total, kinks.largest_switch(share * (doubt + signal).clamp(min=0), radius)


def _signal(pairs: Pairs, gradient: Tensor, second: Tensor) -> Tensor:
    """``g_i · W₂ e_j`` for each pair, (m,)."""
    signal = pairs.by_sample(gradient[:, 0]) * pairs.by_unit(second[0])
    for column, row in zip(gradient.T[1:], second[1:], strict=True):
        signal.addcmul_(pairs.by_sample(column), pairs.by_unit(row))
    return signal


def _coupling(reach: HiddenReach, gradient: Tensor, weights: Tensor, doubt: Tensor) -> Tensor:
    """``‖Σ_i w_i m_ij g_i x̂_iᵀ‖`` for every unit j, (h,): how strongly its two layers pull at each other.

    Args:
        reach: all samples of the step.
        gradient: g_i, (b, K).
        weights: w_i, (b,).
        doubt: what each sample adds to the norm if the unit is on, (b,).
    """
    inputs = append_one(reach.samples.inputs, reach.layer.trains_first_bias)
    weighted = gradient * weights[:, None]
    rows = [inputs.new_zeros(reach.hidden.shape[1], inputs.shape[1]) for _ in gradient.T]
    added = torch.zeros_like(reach.layer.columns)
    for part, mask in reach.signs.masks():
        for total, column in zip(rows, weighted[part].T, strict=True):
            total.addmm_(mask.T, inputs[part] * column[:, None])
        added.addmv_(mask.T, doubt[part])
    return spectral_norms(torch.stack(rows, dim=1)) + added
