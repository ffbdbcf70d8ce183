"""Mixed second derivatives of two layers at the nominal parameters, while no unit switches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agt_lightning.domains.ball.deep.bounds import DeepBounds
from agt_lightning.domains.ball.deep.signals import Signals
from agt_lightning.domains.ball.norms import append_one, spectral_norm, spectral_norms
from agt_lightning.rounding import accumulated_roundoff

_MOST_PRODUCTS = 2**35
"""Multiplications beyond which samples are not averaged before the norm."""


def coupling(bounds: DeepBounds, signals: Signals, weights: Tensor) -> float:
    """Norm of the second derivative of ``Σ_i w_i g_i · f_i`` with fixed slopes and fixed g.

    Two layers k < l meet in ``Σ_i w_i e_l · δ_l M_{l-1} W_{l-1} ... M_k δ_k ẑ_k``, and a layer with itself not at all:
    the norm of the symmetric matrix of the pairs' norms, (L, L).

    Args:
        bounds: of all samples of the step.
        signals: ``e_l = B_lᵀ g_i``, (b, h_l).
        weights: w_i, weight of each sample in the loss, (b,).
    """
    count = len(signals.norms)
    between = torch.zeros(count, count, dtype=torch.float64)
    for first in range(count):
        for second in range(first + 1, count):
            norm = _between(bounds, signals, weights, first, second)
            between[first, second] = between[second, first] = norm
    return spectral_norm(between)


def _between(bounds: DeepBounds, signals: Signals, weights: Tensor, first: int, second: int) -> float:
    """Sample by sample, and averaged before the norm where that is affordable."""
    signal, size = signals.at_results[second], weights * signals.norms[second] * bounds.input_norms[first]
    one_by_one = math.prod(bounds.norms[first + 1 : second]) * float(size.sum())
    values = append_one(bounds.inputs[first], bounds.layers[first].trains_bias)
    per_unit = signal.shape[1] * values.shape[1] * len(weights)
    # Rounding of the sum over samples, that of the signals, and that of the values.
    slack = accumulated_roundoff(len(weights) + bounds.roundings, size.dtype) * float(size.sum())
    slack += float(weights @ (signals.errors[second] * bounds.input_norms[first]))
    if first:
        slack += float(weights @ (signals.norms[second] * bounds.errors[first]))
    units = bounds.units[first].mask.shape[1]
    if second == first + 1 and per_unit * units <= _MOST_PRODUCTS:
        return min(one_by_one, _adjacent(bounds, signal, values, weights, first) + slack)
    if second == first + 2 and per_unit * units * bounds.units[first + 1].mask.shape[1] <= _MOST_PRODUCTS:
        weight = bounds.layers[first + 1].weight
        averaged = weight.abs() * (_one_apart(bounds, signal, values, weights, first) + slack)
        return min(one_by_one, spectral_norm(averaged))
    return one_by_one


def _adjacent(bounds: DeepBounds, signal: Tensor, values: Tensor, weights: Tensor, first: int) -> float:
    """``max_j ‖Σ_i w_i m_ij e_i ẑ_iᵀ‖``: a unit's row in one layer meets its column in the next alone."""
    rows = [bounds.units[first].mask.T @ (values * (weights * column)[:, None]) for column in signal.T]
    return float(spectral_norms(torch.stack(rows, dim=1)).max())


def _one_apart(bounds: DeepBounds, signal: Tensor, values: Tensor, weights: Tensor, first: int) -> Tensor:
    """``‖Σ_i w_i m'_ij' m_ij e_i ẑ_iᵀ‖_F`` for each pair of units with one weight between them, (h', h)."""
    before, after = bounds.units[first].mask, bounds.units[first + 1].mask
    total = torch.zeros_like(bounds.layers[first + 1].weight)
    for column in signal.T:
        for value in values.T:
            total += (after.T @ (before * (weights * column * value)[:, None])).square()
    return total.sqrt()
