"""The ball: one Euclidean radius around the nominal parameters, for heads trained by plain SGD."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from agt_lightning.adversaries import Adversary, BoundedAdversary, UnboundedAdversary
from agt_lightning.aggregation import SampleNormClipping
from agt_lightning.domains.ball.analysis import BallAnalysis
from agt_lightning.domains.ball.clipped import ClippedAnalysis, Edits, Replacements
from agt_lightning.domains.ball.deep import DeepAnalysis
from agt_lightning.domains.ball.gathering import BatchView, counts_in_epochs, epoch_of, names_of, step_data
from agt_lightning.domains.ball.layers import LayerBall
from agt_lightning.domains.ball.linear import LinearAnalysis
from agt_lightning.domains.ball.one_hidden import OneHiddenAnalysis
from agt_lightning.domains.ball.parameter_ball import HeadBall, ParameterBall
from agt_lightning.domains.ball.radius import next_radii
from agt_lightning.domains.ball.step_data import StepData
from agt_lightning.domains.ball.step_rounding import BallStep, nominal_rounding, update_rounding
from agt_lightning.domains.base import (
    Domain,
    DomainLostError,
    OptimizerStep,
    Step,
    TrainingSetup,
    bounds_count,
    relative_to_center,
)
from agt_lightning.domains.head import HeadError
from agt_lightning.domains.head_loss import HeadLossPattern, match_head_loss
from agt_lightning.domains.sgd import plain_sgd_problems, plain_sgd_settings
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.propagation.passes import BoundedBatch, ValueBounds
from agt_lightning.rounding import Floats
from agt_lightning.rules.values import as_interval

_LARGEST_RADIUS = 1e75
"""A ball this large bounds nothing of use; beyond it, powers of the radius overflow."""

_UPWARD = 1 + 2.0**-46
"""Above the rounding of some thirty of Python's own numbers."""

_FAILURES = (ArithmeticError, ValueError, RuntimeError, UncertifiableError)
"""What a computation on numbers that are too large, or on sums that are too long for their type, can raise."""

_ANALYSES: Mapping[int, type[BallAnalysis]] = {1: LinearAnalysis, 2: OneHiddenAnalysis}
"""Analysis of heads by their number of layers; `DeepAnalysis` for more."""


class BallDomain(Domain[BallStep]):
    """All parameters within ``radius`` of the nominal ones, in the Euclidean norm over all trained parameters.

    It covers linear layers with ReLUs between, on anything frozen, trained by SGD without momentum on a convex loss of
    the outputs. With one or two layers it grows with the number of steps where the box grows exponentially; with more
    the bounds are looser, by products of the layers' norms. Under an `UnboundedAdversary` with ``clip="norm"`` it
    covers one linear layer.

    Args:
        module: at its initial parameters.
        dtype: floating point type of the bounds' computation.
        floats: which runs the ball contains, those in the parameters' type or those in real arithmetic. Its center is
            the run that training makes in floating point in both cases.
        adversary: the threat model, of which n of the data set are counted over the steps of an epoch; None counts the
            n of each batch.

    Attributes:
        ball: the ball around the parameters that training has reached.
        step_rounding: how far roundings alone moved a run in the last step, those of the nominal run included.

    Reference:
        docs/theory.md, section 10, and docs/floats.md, eq. (B.1) to (B.10).
    """

    name: ClassVar[str] = "ball"
    covers_sources: ClassVar[bool] = True

    def __init__(
        self, module: nn.Module, dtype: torch.dtype, floats: Floats = "run", adversary: Adversary | None = None
    ) -> None:
        self.module = module
        self.dtype = dtype
        self.adversary = adversary
        self.ball = ParameterBall(0.0, {}, floats)
        self.step_rounding = 0.0
        self._epoch: int | None = None  # of the last step
        self._radii: tuple[float, ...] = (0.0,)
        self._begin_epoch(None)

    @classmethod
    @override
    def build(cls, module: nn.Module, adversary: Adversary, config: CertificationConfig) -> Self:
        return cls(module, config.dtype, config.floats, adversary)

    @property
    def radius(self) -> float:
        """R, in units of the parameters."""
        return self.ball.radius

    @override
    def problems(self, setup: TrainingSetup) -> list[str]:
        problems = _adversary_problems(setup.adversary)
        if setup.clipping is not None:
            problems.append("The ball domain does not cover clipping of the mean gradient. Leave it out.")
        try:
            head = match_head_loss(setup.bounded).head
        except HeadError as error:
            return [*problems, f"The ball domain does not apply: {error}."]
        if self.ball.parameters not in ((), head.parameters):
            problems.append("The ball domain does not apply: other parameters are trained than before.")
        if isinstance(setup.adversary, UnboundedAdversary) and len(head.layers) > 1:
            problems.append(
                f"The ball domain covers clipped gradients of one linear layer, but {len(head.layers)} are trained. "
                "Freeze all but the last one, or use the box."
            )
        return [*problems, *plain_sgd_problems(self.name, setup, head.parameters)]

    @override
    def bound_values(self, step: Step) -> list[ValueBounds]:
        heads = {match_head_loss(part.bounded).head.parameters for part in step.parts}
        if self.ball.parameters and heads != {self.ball.parameters}:
            return []  # a ball around other parameters bounds nothing, and `bound_step` ends it
        return [self._bound_batch(part) for part in step.parts]

    def _bound_batch(self, part: BoundedBatch) -> ValueBounds:
        ball = self.around(part.bounded)
        head = ball.head
        clean = ball.bound_values(as_interval(part.frozen[head.input]))
        poisoned = (
            {} if part.poisoned_prefix is None else ball.bound_values(as_interval(part.poisoned_prefix[head.input]))
        )
        return ValueBounds(clean, poisoned)

    def around(self, bounded: BoundedObjective) -> HeadBall:
        """Return the ball around the trained layers of a captured loss."""
        head = match_head_loss(bounded).head
        return HeadBall(head, self.ball.layers(head, self.module, self.dtype), bounded.dependent)

    @override
    def bound_step(self, step: Step, value_bounds: Sequence[ValueBounds]) -> BallStep:
        with step.processes.collective_errors():
            views = [
                BatchView(part, match_head_loss(part.bounded), bounds)
                for part, bounds in zip(step.parts, value_bounds or [ValueBounds()] * len(step.parts), strict=True)
            ]
            self._require_one_head(views)
            batches = [view.batch(step.adversary) for view in views]
        objective, data = views[0].objective, step_data(step, batches)
        epoch = epoch_of(step) if counts_in_epochs(step.adversary) else None
        try:
            ball = self.ball.layers(objective.head, self.module, self.dtype)
            if isinstance(step.adversary, UnboundedAdversary):
                return _clipped_step(objective, ball, data, step, step.adversary)
            analysis = _ANALYSES.get(len(ball.layers), DeepAnalysis)
            constants = analysis.step_constants(ball, data, step.samples.weights, objective.loss)
        except _FAILURES as error:  # the same in every process, for all have the same data
            raise DomainLostError(f"its bounds cannot be computed: {error}") from error
        return BallStep(objective.head, ball.arithmetic, ball.radius, constants, step.gradient, epoch, names_of(step))

    def _require_one_head(self, views: Sequence[BatchView]) -> None:
        """Raise unless all micro-batches of all steps train the same parameters by the same loss."""
        heads = {view.objective.head.parameters for view in views}
        losses = {(type(view.objective.loss), *vars(view.objective.loss).values()) for view in views}
        before = self.ball.parameters
        if len(heads) > 1 or len(losses) > 1 or (before and before not in heads):
            raise DomainLostError("other parameters are trained than before, or micro-batches differ in their loss")

    @override
    def update(self, data: BallStep, optimizer_step: OptimizerStep) -> None:
        rate, decay = plain_sgd_settings(optimizer_step, data.head.parameters)
        if data.epoch is None or data.epoch != self._epoch or data.names & self._spent:
            self._begin_epoch(data.epoch)  # a sample that is drawn again can be changed again
        self._spent |= data.names
        counted = data.constants if len(self._radii) > 1 else replace(data.constants, pushes=())
        try:
            radii = next_radii(self._radii, counted, rate, decay)
            nominal = nominal_rounding(data, optimizer_step, rate, decay)
            radius = max(radii) + nominal
            update = update_rounding(data, optimizer_step, rate, decay, radius)
            radius += update
        except _FAILURES as error:
            raise DomainLostError(f"its radius cannot be computed: {error}") from error
        if not radius < _LARGEST_RADIUS:  # NaN is not below it
            raise DomainLostError(f"its radius is {radius}: the bounds diverged; use fewer or smaller steps")
        self.step_rounding = (rate * data.constants.roundoff + nominal + update) * _UPWARD
        self.ball = replace(self.ball, radius=radius, centers=_copies(self.module, data.head.parameters))
        self._radii = tuple(each + nominal + update for each in radii)

    def _begin_epoch(self, number: int | None) -> None:
        """Let the adversary change its n samples again, from wherever a run can be."""
        adversary = self.adversary
        levels = adversary.n + 1 if adversary is not None and counts_in_epochs(adversary) else 1
        self._epoch, self._radii = number, (self.radius,) * levels
        self._spent: set[int] = set()

    @override
    def restart_optimizer(self) -> None:
        """Do nothing: plain SGD has no state."""

    @override
    def box(self) -> dict[str, Interval]:
        return self.ball.box(self.module, self.dtype)

    @override
    def parameter_set(self) -> ParameterBall:
        return self.ball

    @override
    def metrics(self) -> dict[str, float]:
        return {"radius": self.radius}

    @override
    def relative_size(self) -> float:
        """Return the radius over the norm of the center."""
        norm = math.sqrt(sum(float(center.double().square().sum()) for center in self.ball.centers.values()))
        return relative_to_center(self.radius, norm)

    @override
    def record(self) -> dict[str, object]:
        return {**self.state(), "bounds_count": self._bounds_count()}

    def _bounds_count(self) -> str:
        if len(self._radii) > 1:
            return "n samples of each epoch, and of each step of an unknown one, as n of the whole data set can be"
        return "n samples of each batch" if self.adversary is None else bounds_count(self.adversary)

    @override
    def fingerprint_tensors(self) -> Iterator[Tensor]:
        yield torch.tensor(self.radius, dtype=torch.float64)
        yield from self.ball.centers.values()

    @override
    def state(self) -> dict[str, Any]:
        return {"radius": self.radius, "parameters": list(self.ball.parameters)}

    @override
    def restore(self, state: Mapping[str, Any]) -> None:
        radius, centers = float(state["radius"]), _copies(self.module, state["parameters"])
        if not 0 <= radius < math.inf or (radius > 0 and not centers):
            raise ValueError(f"the ball has a radius of {radius} around {len(centers)} parameters")
        self.ball = replace(self.ball, radius=radius, centers=centers)
        self._begin_epoch(None)


def _adversary_problems(adversary: Adversary) -> list[str]:
    """Return why an adversary is not covered, whatever the head is, with the way out."""
    if isinstance(adversary, BoundedAdversary):
        return []
    if not isinstance(adversary, UnboundedAdversary):
        return [
            "The ball domain needs a `BoundedAdversary` or an `UnboundedAdversary`, but got "
            f"{type(adversary).__name__}. Use the box."
        ]
    if isinstance(adversary.sample_clipping, SampleNormClipping):
        return []
    return [
        'The ball domain covers `clip="norm"`: gradients that are clipped entry by entry can drive trainings apart. '
        "Use that, or the box."
    ]


def _clipped_step(
    objective: HeadLossPattern, ball: LayerBall, data: StepData, step: Step, adversary: UnboundedAdversary
) -> BallStep:
    """Bound a step on gradients that are clipped sample by sample, some samples of which are others in other runs."""
    clipping = adversary.sample_clipping
    if len(ball.layers) > 1 or not isinstance(clipping, SampleNormClipping):
        raise DomainLostError("it covers gradients that are clipped by their norms, and those of one linear layer")
    analysis = ClippedAnalysis(ball, data, objective.loss, clipping.kappa)
    rows, weights = step.samples.poisonable, step.samples.weights
    foreign = Replacements(step.choice, rows) if step.edits is None else Edits(step.edits, rows)
    constants = analysis.step_constants(weights, foreign)
    gradient = analysis.gradient_by_name(objective.head.layers[0], weights)
    return BallStep(objective.head, ball.arithmetic, ball.radius, constants, gradient)


def _copies(module: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Copy parameters as they are now, by name."""
    return {name: module.get_parameter(name).detach().clone() for name in names}
