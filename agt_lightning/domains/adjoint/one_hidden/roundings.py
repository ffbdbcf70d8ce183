r"""The rounding of the adjoint recursion and of its bounds, as multiples of a direction's norm.

The recursion is computed in float64: ``ĉ_t = (1 - αμ) ĉ_{t+1} - α H ĉ_{t+1} + ε_t``. For *any* directions ĉ_t,

.. math::
    ĉ_T δ_T = \sum_t \big( -α_t ĉ_{t+1} (r_t + p_t) + ĉ_{t+1} τ_t - ε_t δ_t \big),

τ_t what roundings add to the step of a run: nothing is amplified, all errors enter where they are made, and
``|ε_t δ_t| <= ‖ε_t‖ R_t``. A bound computed by sums, products, absolute values, maxima and norms is off by at most γ_k
times the same bound of magnitudes, and those are bounded by norms of layers.

Reference:
    docs/theory.md, eq. (13.20) and (13.21).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agt_lightning.domains.adjoint.curvature import hessian_size, third_derivative
from agt_lightning.domains.adjoint.one_hidden.geometry import StepGeometry
from agt_lightning.domains.adjoint.step import StepRoundings
from agt_lightning.domains.ball.layers import REAL

_TERMS = 64
"""More than the products of magnitudes in the bound of one sample."""


def step_roundings(step: StepGeometry, rate: float, decay: float) -> StepRoundings:
    """Bound the roundings of one step.

    Args:
        step: the step.
        rate: α.
        decay: μ.
    """
    first, second = step.ball.layers
    samples, (inputs, outputs) = len(step.weights), (first.weight.shape[1], len(second.weight))
    # φ is summed over inputs and twice over units, Λφ over outputs, and its products with slopes over all of them.
    gamma = REAL.own_relative(samples + 4 * (inputs + outputs + second.weight.shape[1]) + 64)
    size, weights = jacobian_size(step), step.weights
    gradient_error, curvature_error, value = own_errors(step, gamma)
    reach = 4 * step.radius * size + 4 * step.largest_slope * step.widths
    curvature = step.poisoned_curvature
    third = third_derivative(step.loss, curvature)
    pull = step.gradient_norm + step.label_change + curvature * reach + third * reach.square()
    off = gamma * pull + gradient_error + curvature_error * reach
    bound = _TERMS * math.sqrt(len(first.weight)) * float(weights @ (size * off)) + _doubtful(step, size, value)
    pulled = torch.maximum(size, step.norm)  # layers pull at each other by ``g x̂``, however small they are
    products = pulled * (gamma * step.gradient_norm + gradient_error)
    products += size.square() * (gamma * curvature + curvature_error)
    direction = 8 * gamma * (1 + rate * decay) + 8 * rate * float(weights @ products)
    return StepRoundings(step.upward * bound, step.upward * direction)


def jacobian_size(step: StepGeometry) -> Tensor:
    """Upper bound on the magnitudes of ``Jc`` for directions of norm one, at all parameters and features, (b,)."""
    first, second = step.ball.layers
    reach = step.norm + step.widths
    values = (first.frobenius + step.radius) * reach + float(first.offsets.norm()) + 1
    return step.upward * (values + (second.frobenius + step.radius) * reach)


def own_errors(step: StepGeometry, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Bound the errors of g, of Λ and of the preactivations as they are computed here, (b,) each.

    Args:
        step: the step.
        gamma: γ of the sums that use them.
    """
    size = hessian_size(step.loss, step.samples.outputs)
    curvature_error = step.third * step.still.roundoff.output_error + gamma * size
    return step.gradient_error, step.upward * curvature_error, step.upward * step.own_unit_error


def _doubtful(step: StepGeometry, size: Tensor, error: Tensor) -> float:
    """Bound what slips of units add whose sign rounding leaves open: they can be negative, down to -ρ."""
    count = (step.hidden.abs() <= step.doubt[:, None]).sum(dim=1)
    second = step.ball.layers[1]
    coefficient = step.gradient_norm + step.curvature * size * (second.frobenius + step.radius)
    return float((step.weights * count * torch.maximum(step.doubt, error)) @ coefficient)
