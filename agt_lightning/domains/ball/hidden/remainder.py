"""What the network's own curvature and its kinks add to a step, beside the positive semidefinite part."""

import math

import torch
from torch import Tensor

from agt_lightning.domains.ball.hidden.reach import HiddenReach
from agt_lightning.domains.ball.kinks import Kinks
from agt_lightning.domains.ball.norms import append_one, gram_norm, spectral_norms
from agt_lightning.rounding import accumulated_roundoff


def curvature_norm(reach: HiddenReach, weights: Tensor) -> float:
    """Upper bound on ``‖A‖``: of the layers' diagonal blocks, which is at most their sum.

    Args:
        reach: all samples of the step.
        weights: weight of each sample times the largest curvature of its loss, (b,).
    """
    layer, half = reach.layer, reach.layer.radius / 2
    inputs = append_one(reach.samples.inputs, layer.trains_first_bias)
    activations = append_one(reach.activation, layer.trains_second_bias)
    first = gram_norm(inputs, weights * (reach.weight_on + half).square())
    drift = float((weights @ reach.input_norm.square()).sqrt()) * half
    second = math.sqrt(gram_norm(activations, weights)) + drift
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
    coupling = _coupling(reach, gradient, weights) + (weights * (change / 2 + rounding) * norm) @ reach.mask
    total = float(coupling.max()) * radius
    kinks = Kinks.sorted(reach.near, reach.distance)
    i, j = kinks.pairs.sample, kinks.pairs.unit
    share, mean_size = (weights * norm)[i], (size + change / 2)[i]
    signal = (gradient[i] * layer.second.T[j]).sum(dim=1)
    doubt = radius * mean_size + (layer.columns[j] + radius / 2) * change[i]
    total += kinks.largest_slip(share * mean_size, radius)
    total += kinks.largest_switch(share * (doubt - signal).clamp(min=0), radius)
    return total, kinks.largest_switch(share * (doubt + signal).clamp(min=0), radius)


def _coupling(reach: HiddenReach, gradient: Tensor, weights: Tensor) -> Tensor:
    """``‖Σ_i w_i m_ij g_i x̂_iᵀ‖`` for every unit j, (h,): how strongly its two layers pull at each other."""
    inputs = append_one(reach.samples.inputs, reach.layer.trains_first_bias)
    rows = [reach.mask.T @ (inputs * (weights * column)[:, None]) for column in gradient.T]
    return spectral_norms(torch.stack(rows, dim=1))
