"""What the network's own curvature and its kinks add to a step, beside the positive semidefinite part.

With ``J̄ = ∫ ∂f/∂θ`` along the way from θ to θ̃, ``f̃ - f = J̄ δ``, and the gradient of one sample moves by
``J̃ᵀ g̃ - Jᵀ g = J̄ᵀ Δg + (J̃ - J̄)ᵀ Δg + (J̃ - J)ᵀ g``. The first is ``J̄ᵀ H̄ J̄ δ`` and semidefinite. The last is, in
layer l, ``ẽ_l z̃ᵀ - e_l zᵀ`` with g sent back to e_l: its first order with nominal slopes (`coupling`), the jumps at
units that switch (`jumps`), both averaged over samples before the norm, and the rest sample by sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.domains.ball.deep.coupling import coupling
from agt_lightning.domains.ball.deep.difference import mismatch
from agt_lightning.domains.ball.deep.jumps import jumps
from agt_lightning.domains.ball.deep.reach import DeepReach
from agt_lightning.domains.ball.norms import gram_norm


def curvature_norm(reach: DeepReach, weights: Tensor) -> float:
    """Upper bound on ``‖A‖``: of the layers' diagonal blocks, which is at most their sum.

    Args:
        reach: all samples of the step.
        weights: weight of each sample times the largest curvature of its loss, (b,).
    """
    values = [reach.samples.inputs, *(hidden.clamp(min=0) for hidden in reach.samples.layers[:-1])]
    total = 0.0
    for number, layer in enumerate(reach.head.layers):
        share = weights * reach.largest_sent[number].square()
        if not bool(share.isfinite().all()):
            return math.inf
        still = gram_norm(values[number], share, layer.trains_bias)
        total += (still**0.5 + float(share @ reach.drift[number].square()) ** 0.5) ** 2
    return total


def remainder(reach: DeepReach, gradient: Tensor, change: Tensor, weights: Tensor) -> tuple[float, float]:
    """Upper bounds on ``‖E - J‖`` and ``‖J‖``, J the monotone jumps.

    Args:
        reach: all samples of the step.
        gradient: g_i, of the loss in the outputs at the nominal parameters, (b, K).
        change: upper bound on how far ‖g_i‖ moves over the ball, (b,).
        weights: weight of each sample in the loss, (b,).
    """
    signals, before = ([signal.squeeze(1) for signal in sent] for sent in reach.sent_back(gradient[:, None]))
    forward = _strays(reach)
    rest = _second_order(reach, signals, before, forward) @ weights + mismatch(reach) @ (weights * change)
    against, along = jumps(reach, before, forward.hidden, weights)
    linear = reach.head.radius * coupling(reach, signals, weights)
    return linear + against + float(rest.norm()), along


@dataclass(frozen=True)
class _Strays:
    """How far values are from their first order with nominal slopes.

    Args:
        entering: of what enters each layer, (b,) each.
        hidden: of each unit's preactivation, for each layer but the last, (b, h) each.
    """

    entering: list[Tensor]
    hidden: list[Tensor]


def _strays(reach: DeepReach) -> _Strays:
    """A layer adds ``δ_l Δz``, and a unit that switches at most what its preactivation has gone beyond zero."""
    radius = reach.head.radius
    entering, hidden = [torch.zeros_like(reach.drift[0])], []
    smooth, slipped = entering[0], torch.zeros_like(reach.samples.inputs)
    for number, (units, norm) in enumerate(zip(reach.units, reach.head.norms, strict=False)):
        weight, added = reach.head.layers[number].weight, radius * reach.drift[number]
        hidden.append(slipped @ weight.abs().T + (weight.norm(dim=1) * smooth[:, None]) + added[:, None])
        smooth = norm * entering[-1] + added
        slipped = units.slip
        entering.append(smooth + torch.minimum(slipped.norm(dim=1), radius * units.slope))
    return _Strays(entering, hidden)


def _second_order(reach: DeepReach, signals: list[Tensor], before: list[Tensor], forward: _Strays) -> Tensor:
    """``‖Δe_l‖ ‖Δz‖ + ‖Δe_l - first order - jumps‖ ‖ẑ‖ + ‖e_l‖ ‖Δz - first order‖`` of each layer, (L, b)."""
    head, radius = reach.head, reach.head.radius
    sent = [signal.norm(dim=1) for signal in signals]
    bent = reach.bending([signal[:, None] for signal in before], sent)
    left, jumped = [torch.zeros_like(sent[-1])], torch.zeros_like(sent[-1])
    for number in range(len(reach.units) - 1, -1, -1):
        switching, following, norm = reach.units[number].switching, number + 1, head.norms[number + 1]
        weight = head.layers[following].weight
        on_units, both = switching.weight(weight, norm), torch.zeros_like(jumped)
        if following < len(reach.units):
            # Jumps behind and here meet in the weights between the units that switch, and in no others.
            jumps_behind = reach.units[following].switching.only(before[following].abs()) @ weight.abs()
            both = torch.minimum(switching.signal(jumps_behind[:, None]), on_units * jumped)
        switched = switching.any * radius * sent[following] + on_units * (bent[following] - jumped) + both
        left.append(norm * left[-1] + radius * bent[following] + switched)
        jumped = switching.signal(before[number][:, None])
    blocks = zip(bent, reach.drift, left[::-1], reach.entering, sent, forward.entering, strict=True)
    return torch.stack([b * drift + rest * values + e * stray for b, drift, rest, values, e, stray in blocks])
