"""Sum of the magnitudes of all samples' gradients, to which the rounding of their sum is relative."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.norms import append_one
from agt_lightning.domains.ball.one_hidden.bounds import OneHiddenBounds
from agt_lightning.domains.ball.output_gradient import OutputGradient


def summed_magnitude(bounds: OneHiddenBounds, gradient: OutputGradient, weights: Tensor) -> float:
    """Upper bound on ``‖Σ_i w_i |fl(∇ℓ_i)|‖``: at the nominal parameters before the norm, and changes by norms.

    Args:
        bounds: of all samples of the step.
        gradient: g of the same.
        weights: w_i, weight of each sample in the loss, (b,).

    Reference:
        docs/floats.md, eq. (B.5).
    """
    return math.hypot(_first_layer(bounds, gradient, weights), _second_layer(bounds, gradient, weights))


def _first_layer(bounds: OneHiddenBounds, gradient: OutputGradient, weights: Tensor) -> float:
    """Bound the first layer by ``e = m W₂ᵀ g`` and ``‖Δe‖ <= ‖W̃₂‖ ‖Δg‖ + R ‖g‖ + ‖W₂ on unstable units‖ ‖g‖``."""
    radius, norm = bounds.radius, gradient.norm
    signal_error = bounds.roundoff.backward_errors(norm + gradient.change, gradient.error)[0]
    squares = bounds.unstable.by_unit(bounds.second.squared_columns)
    unstable = bounds.unstable.sums(squares, len(norm)).sqrt()
    change = (bounds.active_norm + radius) * gradient.change + (radius + unstable) * norm + signal_error
    rest = change * (bounds.input_norm + bounds.input_error) + bounds.active_norm * norm * bounds.input_error
    return float(
        euclidean_norm(_nominal_first_layer(bounds, gradient.nominal.abs() * weights[:, None])) + weights @ rest
    )


def _nominal_first_layer(bounds: OneHiddenBounds, weighted: Tensor) -> Tensor:
    """``Σ_i m_i |W₂|ᵀ w_i |g_i| |x̂_i|ᵀ``, (h, d).

    Args:
        bounds: of all samples of the step.
        weighted: ``w_i |g_i|``, (b, K).
    """
    inputs = append_one(bounds.samples.inputs.abs(), bounds.first.trains_bias)
    total = inputs.new_zeros(bounds.hidden.shape[1], inputs.shape[1])
    for column, row in zip(weighted.T, bounds.second.weight.abs(), strict=True):
        sums = torch.zeros_like(total)
        for part, mask in bounds.scan.masks():
            sums.addmm_(mask.T, inputs[part] * column[part, None])
        total.addcmul_(sums, row[:, None])
    return total


def _second_layer(bounds: OneHiddenBounds, gradient: OutputGradient, weights: Tensor) -> float:
    """Bound the second layer by ``|g| |ẑ|ᵀ``, where ẑ moves by ``R ‖x̂‖`` and its rounding."""
    values = append_one(bounds.hidden.clamp(min=0), bounds.second.trains_bias)
    nominal = (gradient.nominal.abs() * weights[:, None]).T @ values
    moved = bounds.radius * bounds.input_norm + bounds.hidden_error
    rest = (gradient.change + gradient.error) * (bounds.activation_norm + moved) + gradient.norm * moved
    return float(euclidean_norm(nominal) + weights @ rest)
