"""Bounds on the part of a step that the network's own curvature and its kinks add, beside the semidefinite one.

With ``J̄ = ∫ ∂f/∂θ`` along the way from θ to θ̃, ``f̃ - f = J̄ δ``, and the gradient of one sample moves by
``J̃ᵀ g̃ - Jᵀ g = J̄ᵀ Δg + (J̃ - J̄)ᵀ Δg + (J̃ - J)ᵀ g``. The first is ``J̄ᵀ H̄ J̄ δ`` and semidefinite. The last is, in
layer l, ``ẽ_l z̃_lᵀ - e_l z_lᵀ`` with ``e_l = B_lᵀ g``: its first order with nominal slopes (`coupling`), the jumps at
units that switch (`gradient_jumps`), both averaged over samples before the norm, and the rest sample by sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.deep.bounds import DeepBounds
from agt_lightning.domains.ball.deep.coupling import coupling
from agt_lightning.domains.ball.deep.gradient_jumps import gradient_jumps
from agt_lightning.domains.ball.deep.signals import Signals
from agt_lightning.domains.ball.norms import gram_norm
from agt_lightning.domains.ball.output_gradient import OutputGradient
from agt_lightning.domains.ball.remainder import Remainder


def curvature_norm(bounds: DeepBounds, weights: Tensor) -> float:
    """Upper bound on ``‖A‖ <= Σ_l ‖A_ll‖``, the layers' diagonal blocks ``Σ_i w_i λ_i ‖B̃_l‖² ẑ̃_l ẑ̃_lᵀ``.

    Args:
        bounds: of all samples of the step.
        weights: ``w_i λ_i``, weight of each sample times the largest curvature of its loss, (b,).
    """
    total = 0.0
    for number, layer in enumerate(bounds.layers):
        share = weights * bounds.largest_backward[number].square()
        if not bool(share.isfinite().all()):
            return math.inf
        nominal = gram_norm(bounds.inputs[number], share, layer.trains_bias)
        total += (nominal**0.5 + float(share @ bounds.input_changes[number].square()) ** 0.5) ** 2
    return total


def remainder(bounds: DeepBounds, mean_jacobian_errors: Tensor, gradient: OutputGradient, weights: Tensor) -> Remainder:
    """Bound E, with the monotone jumps for M.

    Args:
        bounds: of all samples of the step.
        mean_jacobian_errors: ``‖J̃ - J̄‖`` by layer, (L, b).
        gradient: g of the same samples.
        weights: w_i, weight of each sample in the loss, (b,).

    Reference:
        docs/theory.md, eq. (10.23).
    """
    signals = Signals.of(bounds, gradient)
    linearization = _linearization_errors(bounds)
    second_order = _second_order(bounds, signals, linearization) @ weights
    rest = second_order + mean_jacobian_errors @ (weights * gradient.change)
    jumps = gradient_jumps(bounds, signals, linearization.results, weights)
    first_order = bounds.radius * coupling(bounds, signals, weights)
    return Remainder(first_order + jumps.rest + float(euclidean_norm(rest)), jumps.monotone, jumps.discord)


@dataclass(frozen=True)
class _LinearizationErrors:
    """Distances of values from their first order with nominal slopes.

    Args:
        inputs: of z_l, for each layer, (b,) each.
        results: of h_l, for each layer but the last, unit by unit, (b, h) each.
    """

    inputs: list[Tensor]
    results: list[Tensor]


def _linearization_errors(bounds: DeepBounds) -> _LinearizationErrors:
    """A layer adds ``δ_l Δz_l``, and a unit that switches at most what its h has gone beyond zero."""
    radius = bounds.radius
    inputs, results = [torch.zeros_like(bounds.input_changes[0])], []
    smooth, overshoot = inputs[0], torch.zeros_like(bounds.samples.inputs)
    for number, units in enumerate(bounds.units):
        weight, added = bounds.layers[number].weight, radius * bounds.input_changes[number]
        through_units = overshoot @ weight.abs().T
        results.append(through_units + (euclidean_norm(weight, dim=1) * smooth[:, None]) + added[:, None])
        smooth = bounds.norms[number] * inputs[-1] + added
        overshoot = units.overshoot
        inputs.append(smooth + torch.minimum(euclidean_norm(overshoot, dim=1), radius * units.lipschitz))
    return _LinearizationErrors(inputs, results)


def _second_order(bounds: DeepBounds, signals: Signals, errors: _LinearizationErrors) -> Tensor:
    """``‖Δe_l‖ ‖Δz_l‖ + ‖Δe_l - first order - jumps‖ ‖ẑ_l‖ + ‖e_l‖ ‖Δz_l - first order‖`` of each layer, (L, b).

    Args:
        bounds: of all samples of the step.
        signals: e_l.
        errors: of values.
    """
    rows = [signal[:, None] for signal in signals.at_activations]
    changes = bounds.backward_changes_of(rows, signals.errors, signals.norms)
    backward_errors = _backward_errors(bounds, signals, changes)
    layers = zip(
        changes, bounds.input_changes, backward_errors, bounds.input_norms, signals.norms, errors.inputs, strict=True
    )
    return torch.stack([de * dz + error * z + e * z_error for de, dz, error, z, e, z_error in layers])


def _backward_errors(bounds: DeepBounds, signals: Signals, changes: list[Tensor]) -> list[Tensor]:
    """``‖Δe_l - first order - jumps‖`` of each layer, (b,) each.

    Args:
        bounds: of all samples of the step.
        signals: e_l, with norms and rounding.
        changes: ``‖Δe_l‖``, (b,) each.
    """
    radius, norms = bounds.radius, signals.norms
    errors, jump = [torch.zeros_like(norms[-1])], torch.zeros_like(norms[-1])
    for number in range(len(bounds.units) - 1, -1, -1):
        unstable, behind = bounds.units[number].unstable, number + 1
        weight = bounds.layers[behind].weight
        on_units, both = unstable.weight_norm(bounds.layers[behind]), torch.zeros_like(jump)
        if behind < len(bounds.units):
            # Jumps behind and here meet in the weights between the units that switch, and in no others.
            sizes = signals.at_activations[behind].abs() + signals.errors[behind][:, None]
            jumps_behind = bounds.units[behind].unstable.only(sizes) @ weight.abs()
            both = torch.minimum(unstable.columns(jumps_behind[:, None], torch.zeros_like(jump)), on_units * jump)
        # Without the jumps, which are in ``changes``; the difference is rounded outward.
        smooth = (changes[behind] - jump).clamp(min=0) + (bounds.outward - 1) * changes[behind]
        switched = unstable.any * radius * norms[behind] + on_units * smooth + both
        errors.append(bounds.norms[behind] * errors[-1] + radius * changes[behind] + switched)
        jump = unstable.columns(signals.at_activations[number][:, None], signals.errors[number])
    return errors[::-1]
