"""Bounds on the part of a step that the network's own curvature and its kinks add, beside the semidefinite one."""

import math

import torch
from torch import Tensor

from agt_lightning.domains.ball.analysis import Remainder
from agt_lightning.domains.ball.norms import append_one, gram_norm, spectral_norms
from agt_lightning.domains.ball.one_hidden.bounds import OneHiddenBounds
from agt_lightning.domains.ball.output_gradient import OutputGradient
from agt_lightning.domains.ball.unstable import Pairs, UnstableUnits
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


def remainder(bounds: OneHiddenBounds, gradient: OutputGradient, weights: Tensor) -> Remainder:
    """Bound E, with the monotone jumps for M.

    With ``t_ij`` the distance at which unit j of sample i switches, ``ḡ = g + Δg/2``, ``e_ij = g_i · W₂ e_j`` and
    ``σ_ij = R ‖ḡ_i‖ + (‖W₂ e_j‖ + R/2) ‖Δg_i‖``: at most ``R max_j ‖C_j‖`` of `_coupling`, the slips
    ``w_i ‖ḡ_i‖ ‖x̂_i‖ (r_j - t_ij)``, and jumps ``w_i ‖x̂_i‖ (σ_ij - e_ij)⁺``; M has those of ``(σ_ij + e_ij)⁺``. A unit
    that rounding turns on has moved by no more than its rounding against that.

    Args:
        bounds: of all samples of the step.
        gradient: g of the same.
        weights: w_i, weight of each sample in the loss, (b,).

    Reference:
        docs/theory.md, eq. (10.9) to (10.13); docs/floats.md, eq. (B.8).
    """
    radius, norm, change = bounds.radius, bounds.input_norm, gradient.change
    sums = len(norm) + bounds.roundings  # rounding of a sum over samples is relative to that of magnitudes
    rounding = accumulated_roundoff(sums, norm.dtype) * gradient.norm + gradient.error
    added = weights * (change / 2 + rounding) * norm
    coupling = float(_coupling(bounds, gradient.nominal, weights, added).max()) * radius
    unstable = UnstableUnits.sorted(bounds.unstable, bounds.distance)
    pairs, share = unstable.pairs, unstable.pairs.by_sample(weights * norm)
    column_norms = pairs.by_unit(bounds.second.column_norms)
    mean_norm, pair_change = pairs.by_sample(gradient.norm + change / 2), pairs.by_sample(change)
    pull = _pull(pairs, gradient.nominal, bounds.second.weight)
    pull_change = radius * mean_norm + (column_norms + radius / 2) * pair_change
    pull_change.addcmul_(column_norms, pairs.by_sample(rounding))
    with_pull = (pull_change + pull).clamp(min=0)
    return Remainder(
        rest=coupling
        + unstable.largest_ramps(share * mean_norm, radius)
        + unstable.largest_steps(share * (pull_change - pull).clamp(min=0), radius),
        monotone=unstable.largest_steps(share * with_pull, radius),
        discord=float(pairs.by_sample(weights * bounds.unit_error) @ with_pull),
    )


def _pull(pairs: Pairs, gradient: Tensor, second: Tensor) -> Tensor:
    """``e_ij = g_i · W₂ e_j`` for each pair, (m,)."""
    pull = pairs.by_sample(gradient[:, 0]) * pairs.by_unit(second[0])
    for column, row in zip(gradient.T[1:], second[1:], strict=True):
        pull.addcmul_(pairs.by_sample(column), pairs.by_unit(row))
    return pull


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
