"""How far the derivative of the outputs in the parameters differs between two evaluations of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning.domains.ball.deep.reach import DeepReach
from agt_lightning.domains.ball.deep.switching import Switching


def moved_values(reach: DeepReach, step: float, start: Tensor) -> list[Tensor]:
    """How far apart the values are that enter each layer, (b,) each: ``(‖W_l‖ + R) d_l + step · sup ‖ẑ_l‖``.

    Args:
        reach: one of the evaluations is for these samples.
        step: how far apart the parameters are, both in the ball.
        start: how far apart the features are, (b,).
    """
    moved = [start]
    for norm, entering in zip(reach.head.norms[:-1], reach.largest_entering, strict=False):
        moved.append((norm + reach.head.radius) * moved[-1] + step * entering)
    return moved


def bent_signals(reach: DeepReach, step: float, switching: Sequence[Switching]) -> list[Tensor]:
    """How far apart ``∂f/∂h_l`` are at each layer's results, (b,) each.

    ``B'' - B' = (B''₊ - B'₊) W'' M'' + B'₊ (W'' - W') M'' + B'₊ W' (M'' - M')``, ₊ for the next layer, and in the last
    term ``B'₊ W' = B₊ W + (B'₊ - B₊) W + B'₊ (W' - W)``, the first at the nominal parameters.

    Args:
        reach: one of the evaluations, ', is for these samples.
        step: how far apart the parameters are, both in the ball.
        switching: units that may differ, for each layer but the last.
    """
    head = reach.head
    bent = [torch.zeros_like(reach.sent[-1])]
    for number in range(len(switching) - 1, -1, -1):
        switched, following, norm = switching[number], number + 1, head.norms[number + 1]
        through = switched.signal(reach.before[number])
        through = through + reach.bent[following] * switched.weight(head.layers[following].weight, norm)
        through = through + head.radius * reach.largest_sent[following] * switched.any
        bent.append((norm + head.radius) * bent[-1] + step * reach.largest_sent[following] + through)
    return bent[::-1]


def mismatch(reach: DeepReach) -> Tensor:
    """``‖J̃ - J̄‖`` by layer, (L, b): the derivative at a point of the ball against its mean on the way there.

    Every bound is affine in the distance of the two parameters, whose mean is half the radius. A unit that differs
    between two points of the way has switched against the nominal parameters at one of them: twice the budget.
    """
    half = reach.head.radius / 2
    switching = [units.switching.times(2.0) for units in reach.units]
    moved = moved_values(reach, half, torch.zeros_like(reach.sent[0]))
    return joined(bent_signals(reach, half, switching), reach.largest_entering, reach.largest_sent, moved)


def joined(
    bent: Sequence[Tensor], entering: Sequence[Tensor], sent: Sequence[Tensor], moved: Sequence[Tensor]
) -> Tensor:
    """``‖Δ(B ⊗ ẑ)‖ <= ‖ΔB‖ ‖ẑ''‖ + ‖B'‖ ‖Δz‖`` of each layer, (L, b)."""
    layers = zip(bent, entering, sent, moved, strict=True)
    return torch.stack([change * values + signal * shift for change, values, signal, shift in layers])
