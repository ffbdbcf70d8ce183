"""What a step needs to be recorded with the box before it: half-widths, and how far roundings move a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from agt_lightning.domains.adjoint.boxed.head_box import Widths, norm_of, widths_of
from agt_lightning.domains.ball.one_hidden import OneHiddenAnalysis
from agt_lightning.domains.ball.parameter_ball import ParameterBall
from agt_lightning.domains.ball.step_data import StepData
from agt_lightning.domains.ball.step_rounding import BallStep, nominal_rounding, update_rounding
from agt_lightning.domains.base import DomainLostError, OptimizerStep, Step
from agt_lightning.domains.head_loss import HeadLossPattern
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.rounding import Floats

_UPWARD = 1 + 2.0**-46
"""Above the rounding of a few of Python's own numbers."""

_FAILURES = (ArithmeticError, ValueError, RuntimeError, UncertifiableError)
"""What a computation on numbers that are too large, or on sums that are too long for their type, can raise."""


@dataclass(frozen=True, eq=False)
class BoxBefore:
    """The box before a step.

    Args:
        widths: its half-widths around the nominal parameters.
        step: the step of a ball around it, for its roundings.
    """

    widths: Widths
    step: BallStep

    @classmethod
    def of(
        cls, box: Mapping[str, Interval], step: Step, objective: HeadLossPattern, data: StepData, floats: Floats
    ) -> BoxBefore:
        """Bound what roundings of a step depend on, over a ball around the box.

        Args:
            box: interval of each parameter, by name.
            step: the step, before it is made.
            objective: its loss.
            data: samples, targets and poison of all processes.
            floats: which runs the bounds contain.

        Raises:
            DomainLostError: if numbers are too large.
        """
        first, second = objective.head.layers
        names = (first.weight, first.bias, second.weight, second.bias)
        widths = widths_of(box, names, dict(step.module.named_parameters()))
        ball = ParameterBall(norm_of(widths), {}, floats).layers(objective.head, step.module, torch.float64)
        try:
            constants = OneHiddenAnalysis.step_constants(ball, data, step.samples.weights, objective.loss)
        except _FAILURES as error:  # the same in every process, for all have the same data
            raise DomainLostError(f"its bounds cannot be computed: {error}") from error
        return cls(widths, BallStep(objective.head, ball.arithmetic, ball.radius, constants, step.gradient))

    def rounding(self, optimizer_step: OptimizerStep, rate: float, decay: float, after: float) -> float:
        """Bound how far roundings alone move a run in the step, those of the nominal run included.

        Args:
            optimizer_step: the step, after it was made.
            rate: α.
            decay: μ.
            after: radius of a ball that contains the box after the step.

        Raises:
            DomainLostError: if the bound is not finite.

        Reference:
            docs/floats.md, eq. (B.1) and (B.6).
        """
        nominal = nominal_rounding(self.step, optimizer_step, rate, decay)
        update = update_rounding(self.step, optimizer_step, rate, decay, after)
        total = (rate * self.step.constants.roundoff + nominal + update) * _UPWARD
        if not total < float("inf"):
            raise DomainLostError(f"the rounding of a step is {total}: use smaller steps")
        return total
