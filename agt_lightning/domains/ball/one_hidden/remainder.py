"""Bounds on the part of a step that the network's own curvature and its kinks add, beside the semidefinite one."""

import math

import torch
from torch import Tensor

from agt_lightning.domains.ball.norms import append_one, gram_norm, spectral_norms
from agt_lightning.domains.ball.one_hidden.bounds import OneHiddenBounds
from agt_lightning.domains.ball.one_hidden.kinks import Kinks
from agt_lightning.domains.ball.output_gradient import OutputGradient
from agt_lightning.domains.ball.remainder import Remainder
from agt_lightning.rounding import accumulated_roundoff


def curvature_norm(bounds: OneHiddenBounds, weights: Tensor) -> float:
    """Upper bound on ``‖A‖ <= ‖A₁₁‖ + ‖A₂₂‖``, the layers' diagonal blocks.

    ``A₁₁ = Σ_i w_i λ_i (‖W₂ on active units‖ + R/2)² x̂_i x̂_iᵀ``, and ``A₂₂`` is that of ``ẑ̄ = ẑ + Δz/2``, where
    ``‖Δz/2‖ <= R/2 ‖x̂‖``, and ẑ is known up to its rounding.

    Args:
        bounds: of all samples of the step.
        weights: ``w_i λ_i``, weight of each sample times the largest curvature of its loss, (b,).
    """
    half = bounds.radius / 2
    shares = weights * (bounds.active_norm + half).square()
    first = gram_norm(bounds.samples.inputs, shares, bounds.first.trains_bias)
    change = float((weights @ (half * bounds.input_norm + bounds.hidden_error).square()).sqrt())
    second = math.sqrt(gram_norm(bounds.hidden.clamp(min=0), weights, bounds.second.trains_bias)) + change
    return first + second * second


def remainders(bounds: OneHiddenBounds, gradient: OutputGradient, weights: Tensor) -> tuple[Remainder, ...]:
    """Bound E: what fixed units and slips add, with the jumps of units that switch split in two ways.

    With t_ij the distance at which unit j of sample i switches and ``ḡ = g + Δg/2``: at most ``R max_j ‖C_j‖`` of
    `_coupling`, the slips ``w_i ‖ḡ_i‖ ‖x̂_i‖ (r_j - t_ij)``, and the jumps of `Kinks`.

    Args:
        bounds: of all samples of the step.
        gradient: g of the same.
        weights: w_i, weight of each sample in the loss, (b,).

    Reference:
        docs/theory.md, eq. (10.9) to (10.13), (10.37) and (10.38).
    """
    radius, norm, change = bounds.radius, bounds.input_norm, gradient.change
    sums = len(norm) + bounds.roundings  # rounding of a sum over samples is relative to that of magnitudes
    rounding = accumulated_roundoff(sums, norm.dtype) * gradient.norm + gradient.error
    added = weights * (change / 2 + rounding) * norm
    smooth = float(_coupling(bounds, gradient.nominal, weights, added).max()) * radius
    kinks = Kinks.of(bounds, gradient, weights, rounding)
    smooth += kinks.slips()
    return kinks.split_by_sign(smooth), kinks.along_the_movement(smooth)


def _coupling(bounds: OneHiddenBounds, gradient: Tensor, weights: Tensor, added: Tensor) -> Tensor:
    """``‖C_j‖`` of ``C_j = Σ_i w_i m_ij ḡ_i x̂_iᵀ`` for every unit j, (h,): how its two layers pull at each other.

    Samples cancel before the norm at the nominal parameters, ``‖C_j‖ <= ‖Σ_i w_i m_ij g_i x̂_iᵀ‖ + Σ_i m_ij added_i``.

    Args:
        bounds: of all samples of the step.
        gradient: g_i, (b, K).
        weights: w_i, (b,).
        added: what each sample adds to the norm if the unit is active, (b,).
    """
    inputs = append_one(bounds.samples.inputs, bounds.first.trains_bias)
    weighted = gradient * weights[:, None]
    rows = [inputs.new_zeros(bounds.hidden.shape[1], inputs.shape[1]) for _ in gradient.T]
    total_added = inputs.new_zeros(bounds.hidden.shape[1])
    for part, mask in bounds.scan.masks():
        for total, column in zip(rows, weighted[part].T, strict=True):
            total.addmm_(mask.T, inputs[part] * column[:, None])
        total_added.addmv_(mask.T, added[part])
    return spectral_norms(torch.stack(rows, dim=1)) + total_added
