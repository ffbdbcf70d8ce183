"""Difference of ``J = ∂f/∂θ`` between two evaluations of a network, layer by layer: ``J_l = B_lᵀ ⊗ ẑ_l``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning.domains.ball.deep.bounds import DeepBounds
from agt_lightning.domains.ball.unstable import UnstableBetween


def input_changes(bounds: DeepBounds, step: float, start: Tensor) -> list[Tensor]:
    """Bound how far apart the inputs of each layer are, ``d_{l+1} = (‖W_l‖ + R) d_l + step · ‖ẑ̃_l‖``, (b,) each.

    Args:
        bounds: for the samples of one of the evaluations.
        step: how far apart the parameters are, both in the ball.
        start: how far apart the features are, (b,).
    """
    changes = [start]
    for norm, largest in zip(bounds.norms[:-1], bounds.largest_inputs, strict=False):
        changes.append((norm + bounds.radius) * changes[-1] + step * largest)
    return changes


def backward_changes(bounds: DeepBounds, step: float, unstable: Sequence[UnstableBetween]) -> list[Tensor]:
    """Bound how far apart ``B_l = ∂f/∂h_l`` are at each layer's results, (b,) each.

    ``B'' - B' = (B''₊ - B'₊) W'' M'' + B'₊ (W'' - W') M'' + B'₊ W' (M'' - M')``, ₊ for the next layer, and in the last
    term ``B'₊ W' = B₊ W + (B'₊ - B₊) W + B'₊ (W' - W)``, the first at the nominal parameters.

    Args:
        bounds: for the samples of one of the evaluations, '.
        step: how far apart the parameters are, both in the ball.
        unstable: units that may differ, for each layer but the last.
    """
    changes = [torch.zeros_like(bounds.backward_norms[-1])]
    for number in range(len(unstable) - 1, -1, -1):
        units, behind, norm = unstable[number], number + 1, bounds.norms[number + 1]
        switched = units.columns(bounds.activation_jacobians[number], bounds.jacobian_errors[number])
        switched = switched + bounds.backward_changes[behind] * units.weight_norm(bounds.layers[behind])
        switched = switched + bounds.radius * bounds.largest_backward[behind] * units.any
        stable = (norm + bounds.radius) * changes[-1] + step * bounds.largest_backward[behind]
        changes.append(stable + switched)
    return changes[::-1]


def jacobian_changes(
    changes: Sequence[Tensor], values: Sequence[Tensor], backward: Sequence[Tensor], value_changes: Sequence[Tensor]
) -> Tensor:
    """``‖Δ(B_l ⊗ ẑ_l)‖ <= ‖ΔB_l‖ ‖ẑ_l''‖ + ‖B_l'‖ ‖Δz_l‖`` of each layer, (L, b): eq. (10.26) of docs/theory.md.

    Args:
        changes: ``‖ΔB_l‖``, (b,) each.
        values: ``‖ẑ_l''‖``.
        backward: ``‖B_l'‖``.
        value_changes: ``‖Δz_l‖``.
    """
    layers = zip(changes, values, backward, value_changes, strict=True)
    return torch.stack([change * value + norm * moved for change, value, norm, moved in layers])


def mean_jacobian_errors(bounds: DeepBounds) -> Tensor:
    """``‖J̃ - J̄‖`` by layer, (L, b): the Jacobian at a point of the ball against its mean on the way there.

    Every bound is affine in the distance of the two parameters, whose mean is half the radius. A unit that differs
    between two points of the way has switched against the nominal parameters at one of them: twice the budget.

    Reference:
        docs/theory.md, section 10.6.
    """
    half = bounds.radius / 2
    unstable = [units.unstable.times(2.0) for units in bounds.units]
    moved = input_changes(bounds, half, torch.zeros_like(bounds.backward_norms[0]))
    changes = backward_changes(bounds, half, unstable)
    return jacobian_changes(changes, bounds.largest_inputs, bounds.largest_backward, moved)
