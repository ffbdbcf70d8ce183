"""Jumps of the gradient where units switch, at first order in the radius."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.deep.bounds import DeepBounds
from agt_lightning.domains.ball.deep.signals import Signals
from agt_lightning.domains.ball.norms import gram_norm
from agt_lightning.domains.ball.remainder import Remainder
from agt_lightning.domains.ball.unstable import UnstableBetween, UnstableUnits

_MOST_PAIRS = 2**19
"""Pairs beyond which the directions of their rows are not compared, for memory."""


def gradient_jumps(bounds: DeepBounds, signals: Signals, errors: Sequence[Tensor], weights: Tensor) -> Remainder:
    """Bound ``‖J⁻‖ + ‖ν‖`` and ``‖J⁺ + ν‖``, where J⁺ + ν is monotone up to rounding.

    ``J± = Σ_i w_i Σ_j τ_ij p_ij ∇h_ij`` over all pairs of a sample and a unit with ``±p_ij > 0``, where
    ``τ_ij`` is the change of a unit's slope and ``p_ij`` its pull, the derivative of the loss in the unit's activation,
    both ∇h and p at the nominal parameters. ``⟨δ, ∇h_ij⟩`` is Δh_ij up to ``error``, and ``τ_ij Δh_ij >= 0`` up to the
    rounding of h, which is the discord. So
    ``⟨δ, J⁺⟩ >= -ξ`` with ``ξ = Σ_i w_i Σ_j p_ij⁺ error_ij``, and ``J⁺ + ν`` is monotone for a ν along δ of length
    ``ξ / ‖δ‖``. Every part of ``error`` falls at least in proportion to ``‖δ‖``: the length is at most ``ξ / R``.

    Args:
        bounds: of all samples of the step.
        signals: p of each layer but the last.
        errors: how far Δh is from its first order with nominal slopes, for each layer but the last, (b, h).
        weights: w_i, weight of each sample in the loss, (b,).

    Reference:
        docs/theory.md, eq. (10.27).
    """
    against = monotone = discord = 0.0
    radius = bounds.radius
    for number, (pull, error) in enumerate(zip(signals.at_activations, errors, strict=True)):
        rounding = signals.errors[number][:, None]
        against += _size(bounds, number, (rounding - pull).clamp(min=0), weights)
        positive = (rounding + pull).clamp(min=0)
        monotone += _size(bounds, number, positive, weights)
        units = bounds.units[number]
        pairs = units.unstable.pairs
        pair_weights, pulls = weights[pairs.sample], pairs.of(positive)
        discord += float(pair_weights @ (pulls * pairs.by_sample(units.roundoff)))
        if number > 0 and radius > 0:
            correction = float(pair_weights @ (pulls * pairs.of(error))) / radius
            against, monotone = against + correction, monotone + correction
    return Remainder(against, monotone, discord)


def _size(bounds: DeepBounds, number: int, pull: Tensor, weights: Tensor) -> float:
    """``‖Σ_i w_i Σ_j τ_ij p_ij ∇h_ij‖`` of one layer's units with p >= 0: their own rows, and the layers before."""
    unstable, norm = bounds.units[number].unstable, bounds.input_norms[number]
    if number == 0:
        return _first_layer(unstable, pull, weights * norm, norm, bounds.radius)
    pairs = unstable.pairs
    rows = torch.zeros_like(pull[0]).index_add_(0, pairs.unit, (weights * norm)[pairs.sample] * pairs.of(pull))
    return math.hypot(float(euclidean_norm(rows)), *_layers_before(bounds, number, pull, weights))


def _first_layer(unstable: UnstableBetween, pull: Tensor, share: Tensor, norm: Tensor, radius: float) -> float:
    """In the first layer each unit's own row must move, and all rows share the radius."""
    least = torch.finfo(norm.dtype).tiny
    distance = unstable.distance / norm.clamp(min=least)[unstable.pairs.sample]
    units = UnstableUnits.sorted(unstable.pairs, distance)
    return units.largest_steps(share[units.pairs.sample] * units.pairs.of(pull), radius)


def _layers_before(bounds: DeepBounds, number: int, pull: Tensor, weights: Tensor) -> list[float]:
    """``‖Σ_i w_i Σ_j τ_ij p_ij ∂h_ij/∂h_k ẑ_kᵀ‖`` in each layer k before layer l."""
    unstable = bounds.units[number].unstable
    pairs, pair_pulls = unstable.pairs, unstable.pairs.of(pull)
    if len(pair_pulls) == 0:
        return []
    comparable = len(pair_pulls) <= _MOST_PAIRS
    weight = bounds.layers[number].weight
    rows = weight[pairs.unit] if comparable else weight[:0]
    backward, sizes = unstable.columns(pull[:, None], torch.zeros_like(weights)), []
    error, size_of_rows = torch.zeros_like(pair_pulls), euclidean_norm(rows, dim=1) if comparable else pair_pulls
    for earlier in range(number - 1, -1, -1):
        backward = backward * bounds.norms[earlier + 1]
        share = weights * bounds.input_norms[earlier]
        size = float(share @ backward)
        if comparable:
            rows = rows * bounds.units[earlier].mask[pairs.sample]
            pair_share, layer = share[pairs.sample] * pair_pulls, bounds.layers[earlier]
            one_by_one = unstable.largest_sum(pair_pulls * (euclidean_norm(rows, dim=1) + error))
            averaged = _averaged(rows, pair_share) + float(pair_share @ error)
            size = min(float(share @ torch.minimum(backward, one_by_one)), averaged)
            rows = rows @ layer.weight if earlier else rows
            relative = bounds.ball.arithmetic.own_relative(len(layer.weight))
            error = layer.norm * error + relative * layer.frobenius * (size_of_rows + error)
            size_of_rows = layer.norm * size_of_rows
        sizes.append(size)
    return sizes


def _averaged(rows: Tensor, share: Tensor) -> float:
    """``‖Σ_a c_a r_a ⊗ u_a‖ <= (Σ_a c_a ‖r_a‖)^½ ‖Σ_a c_a r_a r_aᵀ / ‖r_a‖‖^½`` for any unit vectors u_a.

    Rows of different units point in different directions, and their pulls do not add up.

    Args:
        rows: r, (m, k).
        share: c >= 0, (m,).
    """
    norms = euclidean_norm(rows, dim=1)
    kept = norms > torch.finfo(norms.dtype).tiny  # rows of zero add nothing, and have no direction
    rows, share, norms = rows[kept], share[kept], norms[kept]
    return math.sqrt(float(share @ norms) * gram_norm(rows, share / norms)) if len(rows) else 0.0
