r"""The rounding of a recorded training and of its replay, in units of the outputs (docs/floats.md, section 8).

A run in floating point makes the step ``W' = (step of (W, M)) + ρ``, ``M' = ... + σ``. For *any* rows v_t, u_t, such as
the replay's own, rounded ones, the functional telescopes:

.. math::
    W_T v_T = W_0 v_0 + \sum_t \Big( \sum_i a_{t,i} y_i + \rho_t v_t + \sigma_t u_t - W_{t-1} e_t - M_{t-1} e'_t \Big),

where a is computed from (v_t, u_t) exactly and e_t, e'_t are the rounding errors of the step back that led from
(v_t, u_t) to (v_{t-1}, u_{t-1}). Nothing is amplified: all errors enter where they are made. What is needed are upper
bounds on the norms of W_t and M_t in every run, and those follow the steps forward:

.. math::
    \|W'\| \le \|I - \text{step} H\| \|W\| + \text{step} \, g + \text{carry} \|M\| + \|\rho\|, \qquad
    h = \sum_i c_i \|\hat x_i\|^2, \quad g = \sum_i c_i \|\hat x_i\| \max |y|,

with ``‖I - step H‖ <= max(1, step h - 1)`` since H is positive semidefinite with largest eigenvalue at most h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.influence.sgd_map import SGDMap

_UPDATE_ROUNDINGS = 12
"""Roundings of a gradient or a buffer on its way into the head; see `agt_lightning.optimizers.sgd`."""

_GRADIENT_ROUNDINGS = 24
"""Roundings of a sample's gradient besides its sums: residual, factors of the loss, product."""

_UPWARD = 1 + 2.0**-20
"""Room for the roundings of these bounds themselves, which are sums and products of nonnegative numbers."""


class Recorded(Protocol):
    """What is needed of a recorded step."""

    @property
    def slopes(self) -> Tensor: ...  # noqa: D102

    @property
    def update(self) -> SGDMap: ...  # noqa: D102

    @property
    def errors(self) -> tuple[float, float]: ...  # noqa: D102


@dataclass(frozen=True)
class Affine:
    """An upper bound ``constant + per_label · y`` for labels of magnitude at most y."""

    constant: float
    per_label: float

    def __add__(self, other: Affine) -> Affine:
        return Affine(self.constant + other.constant, self.per_label + other.per_label)

    def __rmul__(self, factor: float) -> Affine:
        return Affine(self.constant * factor, self.per_label * factor)


@dataclass(frozen=True)
class StepErrors:
    """Bounds on one step of every run.

    Args:
        parameter: norm of each row of W before the step.
        buffer: norm of each row of M before the step.
        rho: norm of the error of W that the step makes.
        sigma: norm of the error of M.
        curvature: ``h + λ``.
        pull: ``Σ c_i ‖x̂_i‖``.
    """

    parameter: Affine
    buffer: Affine
    rho: Affine
    sigma: Affine
    curvature: float
    pull: float


def step_errors(
    steps: Sequence[Recorded], inputs: Sequence[Tensor], initial: Tensor, arithmetic: Arithmetic
) -> tuple[list[StepErrors], Affine]:
    """Follow the norms of all runs forward.

    Args:
        steps: in the order of training.
        inputs: norms of x̂ of the samples of each step, (b,).
        initial: W_0, (K, D).
        arithmetic: of the runs; ``run`` is None for runs in real arithmetic.

    Returns:
        The bounds of each step, and that on the norm of each row of W after the last one.
    """
    parameter, buffer = Affine(float(euclidean_norm(initial, dim=1).max()) * _UPWARD, 0.0), Affine(0.0, 0.0)
    errors = []
    for step, norms in zip(steps, inputs, strict=True):
        made = _errors(step, norms, initial.shape[1], parameter, buffer, arithmetic)
        errors.append(made)
        parameter, buffer = _after(step, made)
    return errors, parameter


def _errors(
    step: Recorded, norms: Tensor, columns: int, parameter: Affine, buffer: Affine, arithmetic: Arithmetic
) -> StepErrors:
    weights, update = step.slopes.abs(), step.update
    pull = float((weights * norms).sum()) * _UPWARD
    curvature = float((weights * norms.square()).sum()) * _UPWARD
    decay = float(update.decay.abs().max())
    size, share = float(update.step.abs().max()), float(update.share.abs().max())
    carry, keep = float(update.carry.abs().max()), float(update.keep.abs().max())
    gradient = curvature * parameter + Affine(0.0, pull)
    sums = len(step.slopes) + columns + _GRADIENT_ROUNDINGS
    off, target_off = step.errors
    total = float(weights.sum()) * _UPWARD
    # ‖Σ c (W x̃ - y) x̃ - Σ c (W x̂ - y) x̂‖ for features that are off by at most `off` each.
    moved = (2 * off * pull + off**2 * total) * parameter + Affine(target_off * (pull + off * total), off * total)
    direction = arithmetic.run_relative(sums) * gradient + 2 * moved
    rounding = arithmetic.run_relative(_UPDATE_ROUNDINGS)
    applied = gradient + decay * parameter + direction
    least = columns * arithmetic.absolute(sums)
    rho = size * direction + rounding * (parameter + size * applied + carry * buffer) + Affine(least, 0.0)
    sigma = share * direction + rounding * (keep * buffer + share * applied) + Affine(least, 0.0)
    return StepErrors(parameter, buffer, _UPWARD * rho, _UPWARD * sigma, curvature + decay, pull)


def _after(step: Recorded, made: StepErrors) -> tuple[Affine, Affine]:
    """Bound the norms after a step."""
    update = step.update
    size, share = float(update.step.abs().max()), float(update.share.abs().max())
    carry, keep = float(update.carry.abs().max()), float(update.keep.abs().max())
    alike = float(update.step.min()) == size and float(update.decay.min()) == float(update.decay.max())
    descends = alike and size >= 0 and bool((step.slopes >= 0).all()) and bool((update.decay >= 0).all())
    growth = max(1.0, size * made.curvature - 1) if descends else 1 + size * made.curvature
    pulled = Affine(0.0, made.pull)
    parameter = growth * made.parameter + size * pulled + carry * made.buffer + made.rho
    buffer = keep * made.buffer + share * (made.curvature * made.parameter + pulled) + made.sigma
    return _UPWARD * parameter, _UPWARD * buffer


def functional_error(step: Recorded, made: StepErrors, norms: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Return what one step adds to the error of outputs: a constant, and a factor of the largest label, each (Q,).

    Args:
        step: the step.
        made: its bounds.
        norms: of the functionals (v, u) after the step, (Q, 2).
        columns: number D of columns.
    """
    own = Arithmetic(None, torch.float64).relative(len(step.slopes) + columns + _GRADIENT_ROUNDINGS)
    update = step.update
    gains = [float(factor.abs().max()) for factor in (update.step, update.share, update.carry, update.keep)]
    size, share, carry, keep = gains
    v, u = norms[:, 0] * _UPWARD, norms[:, 1] * _UPWARD
    through = share * u + size * v
    # Errors of the step back, times the state before it; and of the coefficients, times the labels.
    of_parameter, of_buffer = own * (v + made.curvature * through), own * (keep * u + carry * v)
    constant = (
        made.rho.constant * v
        + made.sigma.constant * u
        + made.parameter.constant * of_parameter
        + made.buffer.constant * of_buffer
    )
    per_label = (
        made.rho.per_label * v
        + made.sigma.per_label * u
        + made.parameter.per_label * of_parameter
        + made.buffer.per_label * of_buffer
        + own * made.pull * through
    )
    return 2 * constant, 2 * per_label
