"""How strongly two layers pull at each other at the nominal parameters, while no unit switches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning.domains.ball.deep.reach import DeepReach
from agt_lightning.domains.ball.norms import append_one, spectral_norm, spectral_norms
from agt_lightning.rounding import accumulated_roundoff

_MOST_PRODUCTS = 2**35
"""Multiplications beyond which samples are not averaged before the norm."""


def coupling(reach: DeepReach, signals: Sequence[Tensor], weights: Tensor) -> float:
    """Norm of the second derivative of ``Σ_i w_i g_i · f_i`` with fixed slopes and fixed g.

    Two layers k < l meet in ``Σ_i w_i e_l · δ_l M_{l-1} W_{l-1} ... M_k δ_k ẑ_k``, and a layer with itself not at all.

    Args:
        reach: all samples of the step.
        signals: e_l, the signal g_i sent back to each layer's results, (b, h_l).
        weights: weight of each sample in the loss, (b,).
    """
    count = len(signals)
    between = torch.zeros(count, count, dtype=torch.float64)
    for first in range(count):
        for second in range(first + 1, count):
            between[first, second] = between[second, first] = _between(reach, signals, weights, first, second)
    return spectral_norm(between)


def _between(reach: DeepReach, signals: Sequence[Tensor], weights: Tensor, first: int, second: int) -> float:
    """Sample by sample, and averaged before the norm where that is affordable."""
    head, signal = reach.head, signals[second]
    size = weights * signal.norm(dim=1) * reach.entering[first]
    on_the_way = 1.0
    for norm in head.norms[first + 1 : second]:
        on_the_way *= norm
    alone = on_the_way * float(size.sum())
    values = _entering(reach, first)
    per_unit = signal.shape[1] * values.shape[1] * len(weights)
    slack = accumulated_roundoff(len(weights) + head.roundings, size.dtype)
    units = reach.units[first].mask.shape[1]
    if second == first + 1 and per_unit * units <= _MOST_PRODUCTS:
        return min(alone, _adjacent(reach, signal, values, weights, first) + slack * float(size.sum()))
    if second == first + 2 and per_unit * units * reach.units[first + 1].mask.shape[1] <= _MOST_PRODUCTS:
        weight = head.layers[first + 1].weight
        averaged = weight.abs() * (_apart(reach, signal, values, weights, first) + slack * float(size.sum()))
        return min(alone, spectral_norm(averaged))
    return alone


def _adjacent(reach: DeepReach, signal: Tensor, values: Tensor, weights: Tensor, first: int) -> float:
    """``max_j ‖Σ_i w_i m_ij e_i ẑ_iᵀ‖``: a unit's row in one layer meets its column in the next alone."""
    rows = [reach.units[first].mask.T @ (values * (weights * column)[:, None]) for column in signal.T]
    return float(spectral_norms(torch.stack(rows, dim=1)).max())


def _apart(reach: DeepReach, signal: Tensor, values: Tensor, weights: Tensor, first: int) -> Tensor:
    """``‖Σ_i w_i m'_ij' m_ij e_i ẑ_iᵀ‖_F`` for each pair of units with one weight between them, (h', h)."""
    before, after = reach.units[first].mask, reach.units[first + 1].mask
    total = torch.zeros_like(reach.head.layers[first + 1].weight)
    for column in signal.T:
        for value in values.T:
            total += (after.T @ (before * (weights * column * value)[:, None])).square()
    return total.sqrt()


def _entering(reach: DeepReach, number: int) -> Tensor:
    """What enters a layer, with the one of its bias."""
    values = reach.samples.inputs if number == 0 else reach.samples.layers[number - 1].clamp(min=0)
    return append_one(values, reach.head.layers[number].trains_bias)
