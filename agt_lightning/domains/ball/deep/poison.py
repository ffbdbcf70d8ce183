"""Effect of poisoned features on a deep head, anywhere in the ball."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.deep.bounds import DeepBounds
from agt_lightning.domains.ball.deep.jacobian_change import backward_changes, jacobian_changes
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.poison_bounds import JacobianEffect
from agt_lightning.domains.ball.unstable import UnstableBetween
from agt_lightning.interval import Interval


def feature_effect(
    bounds: DeepBounds, features: Perturbation, poisoned_bounds: tuple[Interval, ...] | None
) -> JacobianEffect:
    """Bound ``‖Δf‖`` and ``‖ΔJ‖`` by ``‖Δz_{l+1}‖ <= (‖W_l‖ + R) ‖Δz_l‖``, sharper in the first layer.

    Args:
        bounds: of the poisonable samples.
        features: their perturbation.
        poisoned_bounds: bounds on each layer's results for poisoned features from another domain; None without one.

    Reference:
        docs/theory.md, eq. (10.16) and (10.26).
    """
    norm = features.norm().expand_as(bounds.input_norms[0])
    rows = features.support(bounds.layers[0].weight)
    first = euclidean_norm(rows, dim=1).clamp(max=bounds.norms[0] * features.norm()).expand_as(norm)
    moved = [norm, first + bounds.radius * norm]
    for weight_norm in bounds.norms[1:]:
        moved.append((weight_norm + bounds.radius) * moved[-1])
    changes = backward_changes(bounds, 0.0, _unstable(bounds, moved, rows, poisoned_bounds))
    *input_moved, output_moved = moved
    poisoned_inputs = [values + more for values, more in zip(bounds.largest_inputs, input_moved, strict=True)]
    jacobian = euclidean_norm(jacobian_changes(changes, poisoned_inputs, bounds.largest_backward, input_moved), dim=0)
    output = torch.minimum(output_moved, _output_change(bounds, features, first, changes[0]))
    return JacobianEffect(output, jacobian, bounds.jacobian_norm)


def _unstable(
    bounds: DeepBounds, moved: Sequence[Tensor], rows: Tensor, poisoned_bounds: tuple[Interval, ...] | None
) -> list[UnstableBetween]:
    """Units that can have different signs with clean and with poisoned features.

    Args:
        bounds: of the poisonable samples.
        moved: how far poisoned features move the input of each layer, and the outputs, (m,) each.
        rows: largest ``|row · Δx|`` of the first layer, (m, h) or (1, h).
        poisoned_bounds: as for `feature_effect`.
    """
    unstable = []
    for number, units in enumerate(bounds.units):
        if number == 0:
            more = rows + bounds.radius * moved[0][:, None]
        else:
            more = (euclidean_norm(bounds.layers[number].weight, dim=1) + bounds.radius) * moved[number][:, None]
        clean_bounds, known = bounds.samples.layer_bounds, []
        if poisoned_bounds is not None and clean_bounds is not None:
            known = [clean_bounds[number], poisoned_bounds[number]]
        together = bounds.radius * units.lipschitz + moved[number + 1]
        unstable.append(units.unstable_within(more, together, known))
    return unstable


def _output_change(bounds: DeepBounds, features: Perturbation, first: Tensor, change: Tensor) -> Tensor:
    """``‖Δf‖ <= ∫ ‖B̃₀ W̃₀ Δx‖`` along the way from x to x + Δx, where nominal ``B₀ W₀ Δx`` cancels among units, (m,).

    Args:
        bounds: of the poisonable samples.
        features: their perturbation.
        first: ``‖W₀ Δx‖``, (m,).
        change: ``‖ΔB₀‖`` between clean and poisoned features, (m,).
    """
    rows = bounds.result_jacobians[0] @ bounds.layers[0].weight
    nominal = euclidean_norm(torch.stack([features.sample_support(row) for row in rows.unbind(dim=1)], dim=1), dim=1)
    norm = features.norm().expand_as(first)
    of_rows = (bounds.backward_changes[0] + change) * first
    nominal = nominal + _rounding_of_rows(bounds) * norm
    output_change: Tensor = nominal + of_rows + (bounds.largest_backward[0] + change) * bounds.radius * norm
    return output_change


def _rounding_of_rows(bounds: DeepBounds) -> Tensor:
    """Own rounding of ``B₀ W₀``, (m,)."""
    layer, backward = bounds.layers[0], bounds.backward_norms[0]
    error = bounds.jacobian_errors[0]
    relative = bounds.ball.arithmetic.own_relative(len(layer.weight))
    # `backward_norms` may be below the Frobenius norm, by the root of the number of outputs.
    size = math.sqrt(len(bounds.layers[-1].weight)) * backward + error
    return layer.norm * error + relative * layer.frobenius * size
