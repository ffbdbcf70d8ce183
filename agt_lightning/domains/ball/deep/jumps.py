"""Jumps of the gradient where units switch, at first order in the radius."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning.domains.ball.deep.reach import DeepReach
from agt_lightning.domains.ball.deep.switching import Switching
from agt_lightning.domains.ball.kinks import Kinks
from agt_lightning.domains.ball.norms import gram_norm

_MOST_PAIRS = 2**19
"""Pairs beyond which the directions of their rows are not compared, for memory."""


def jumps(reach: DeepReach, before: Sequence[Tensor], strays: Sequence[Tensor], weights: Tensor) -> tuple[float, float]:
    """Upper bounds on ``‖J⁻‖ + ‖ν‖`` and ``‖J⁺ + ν‖``, where J⁺ + ν is monotone.

    ``J± = Σ_i w_i Σ_j τ_ij p_ij ∇h_ij`` over all pairs of a sample and a unit with ``±p_ij > 0``, where
    ``τ_ij`` is the change of a unit's slope and ``p_ij`` the signal in front of it, both ∇h and p at the nominal
    parameters. ``⟨δ, ∇h_ij⟩`` is Δh_ij up to ``stray``, and ``τ_ij Δh_ij >= 0``. So ``⟨δ, J⁺⟩ >= -ξ`` with
    ``ξ = Σ_i w_i Σ_j p_ij⁺ stray_ij``, and ``J⁺ + ν`` is monotone for a ν along δ of length ``ξ / ‖δ‖``. Every part of
    ``stray`` falls at least in proportion to ``‖δ‖``: the length is at most ``ξ / R``.

    Args:
        reach: all samples of the step.
        before: p of each layer but the last, (b, h).
        strays: how far Δh is from its first order with nominal slopes, for each layer but the last, (b, h).
        weights: weight of each sample in the loss, (b,).
    """
    against, along = 0.0, 0.0
    radius = reach.head.radius
    for number, (signal, stray) in enumerate(zip(before, strays, strict=True)):
        against += _size(reach, number, (-signal).clamp(min=0), weights)
        positive = signal.clamp(min=0)
        along += _size(reach, number, positive, weights)
        if number > 0 and radius > 0:
            pairs = reach.units[number].switching.pairs
            correction = float(weights[pairs.sample] @ (pairs.of(positive) * pairs.of(stray))) / radius
            against, along = against + correction, along + correction
    return against, along


def _size(reach: DeepReach, number: int, signal: Tensor, weights: Tensor) -> float:
    """Of one layer's units with a signal >= 0: their own rows, and the layers before."""
    switching, rows = reach.units[number].switching, reach.entering[number]
    if number == 0:
        return _first(switching, signal, weights * rows, rows, reach.head.radius)
    i, j = switching.pairs.sample, switching.pairs.unit
    pulls = switching.pairs.of(signal)
    units = torch.zeros_like(signal[0]).index_add_(0, j, (weights * rows)[i] * pulls)
    return math.hypot(float(units.norm()), *_before(reach, number, signal, weights))


def _first(switching: Switching, signal: Tensor, share: Tensor, rows: Tensor, radius: float) -> float:
    """In the first layer each unit's own row must move, and all rows share the radius."""
    least = torch.finfo(rows.dtype).tiny
    kinks = Kinks.sorted(switching.pairs, switching.distance / rows.clamp(min=least)[switching.pairs.sample])
    return kinks.largest_switch(share[kinks.pairs.sample] * kinks.pairs.of(signal), radius)


def _before(reach: DeepReach, number: int, signal: Tensor, weights: Tensor) -> list[float]:
    """``‖Σ_i w_i Σ_j τ_ij p_ij ∂h_ij/∂h_k ẑ_iᵀ‖`` in each layer k before layer l."""
    head, switching = reach.head, reach.units[number].switching
    pairs, pulls = switching.pairs, switching.pairs.of(signal)
    if len(pulls) == 0:
        return []
    comparable = len(pulls) <= _MOST_PAIRS
    rows = head.layers[number].weight[pairs.unit] if comparable else head.layers[number].weight[:0]
    sent, sizes = switching.signal(signal[:, None]), []
    for earlier in range(number - 1, -1, -1):
        sent = sent * head.norms[earlier + 1]
        share = weights * reach.entering[earlier]
        size = float(share @ sent)
        if comparable:
            rows = rows * reach.units[earlier].mask[pairs.sample]
            one_by_one = switching.most(pulls * rows.norm(dim=1))
            size = min(float(share @ torch.minimum(sent, one_by_one)), _together(rows, share[pairs.sample] * pulls))
            rows = rows @ head.layers[earlier].weight if earlier else rows
        sizes.append(size)
    return sizes


def _together(rows: Tensor, share: Tensor) -> float:
    """``‖Σ_a c_a r_a ⊗ u_a‖ <= (Σ_a c_a ‖r_a‖)^½ ‖Σ_a c_a r_a r_aᵀ / ‖r_a‖‖^½`` for any unit vectors u_a.

    Rows of different units point in different directions, and their pulls do not add up.

    Args:
        rows: r, (m, k).
        share: c >= 0, (m,).
    """
    norms = rows.norm(dim=1)
    least = torch.finfo(norms.dtype).tiny
    return math.sqrt(float(share @ norms) * gram_norm(rows, share / norms.clamp(min=least)))
