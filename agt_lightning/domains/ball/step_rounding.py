"""How far the optimizer's own roundings move a run, and training itself, in one step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.ball.radius import StepConstants
from agt_lightning.domains.base import OptimizerStep
from agt_lightning.domains.head import Head
from agt_lightning.rounding import accumulated_roundoff

_ROUNDINGS = 8
"""Roundings on the way of each term through one update."""

_UPWARD = 1 + 2.0**-46
"""Above the rounding of some thirty of Python's own numbers."""


@dataclass(frozen=True)
class BallStep:
    """Data of one step for the update of the radius.

    Args:
        head: the trained layers.
        arithmetic: roundings of runs and bounds.
        radius: R before the step.
        constants: suprema over the ball.
        gradient: of the step's loss at the nominal parameters, by parameter name.
        epoch: number of the pass over the data set; None if it is not known, or does not matter.
        names: of its samples, where some are given and the epoch matters.
    """

    head: Head
    arithmetic: Arithmetic
    radius: float
    constants: StepConstants
    gradient: Mapping[str, Tensor]
    epoch: int | None = None
    names: frozenset[int] = frozenset()


def nominal_rounding(data: BallStep, optimizer_step: OptimizerStep, rate: float, decay: float) -> float:
    """Bound the distance between the parameters that training reached and those of its step in real arithmetic.

    The ball is centered at the former; its step is proved for the latter. The distance is measured, the error of the
    training's gradient included; that of the gradient it is measured with is part of the step's constants.

    Reference:
        docs/floats.md, eq. (B.6).
    """
    distances = []
    for name in data.head.parameters:
        exact = data.gradient[name]
        before = optimizer_step.before[name].to(exact.dtype)
        after = optimizer_step.parameters[name].detach().to(exact.dtype)
        distance = euclidean_norm(after - before + rate * (exact + decay * before))
        sizes = euclidean_norm(after) + (1 + rate * decay) * euclidean_norm(before) + rate * euclidean_norm(exact)
        rounding = accumulated_roundoff(_ROUNDINGS, exact.dtype) * sizes
        distances.append(float(distance + rounding) * (1 + accumulated_roundoff(exact.numel() + 8, exact.dtype)))
    return math.hypot(*distances) * _UPWARD


def update_rounding(data: BallStep, optimizer_step: OptimizerStep, rate: float, decay: float, radius: float) -> float:
    """Bound what the optimizer's own roundings add in a run whose parameters end within ``radius``.

    ``θ - α (g + μ θ)`` takes one rounding of the result, and a few of the second term, with α and μ rounded.

    Reference:
        docs/floats.md, eq. (B.6).
    """
    arithmetic = data.arithmetic
    if arithmetic.run is None:
        return 0.0
    before, after, count = 0.0, 0.0, 0
    for name in data.head.parameters:
        parameter = optimizer_step.parameters[name].detach()
        count += parameter.numel()
        before = math.hypot(before, float(euclidean_norm(optimizer_step.before[name].to(torch.float64))))
        after = math.hypot(after, float(euclidean_norm(parameter.to(torch.float64))))
    outward = 1 + arithmetic.own_relative(count)
    step = rate * (data.constants.gradient + decay * (outward * before + data.radius))
    sizes = arithmetic.run_relative(1) * (outward * after + radius) + arithmetic.run_relative(_ROUNDINGS) * step
    return (sizes + math.sqrt(count) * arithmetic.absolute(_ROUNDINGS)) * (1 + arithmetic.run_relative(2)) * _UPWARD
