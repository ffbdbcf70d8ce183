"""The adjoint domain: a record of the training, from which the worst poison for one output at a time is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from agt_lightning.adversaries import Adversary
from agt_lightning.domains.adjoint.applicability import setup_problems
from agt_lightning.domains.adjoint.boxed import BoxedTrajectory
from agt_lightning.domains.adjoint.boxed.head_box import norm_of, widths_of
from agt_lightning.domains.adjoint.boxed.recording import BoxBefore
from agt_lightning.domains.adjoint.recorded_trajectory import RecordedTrajectory
from agt_lightning.domains.adjoint.recorder import TrajectoryRecorder
from agt_lightning.domains.ball.domain import BallDomain
from agt_lightning.domains.ball.gathering import BatchView, step_data
from agt_lightning.domains.ball.step_data import StepData
from agt_lightning.domains.base import Domain, DomainLostError, OptimizerStep, Step, TrainingSetup
from agt_lightning.domains.head import Head
from agt_lightning.domains.head_loss import match_head_loss
from agt_lightning.domains.losses import (
    HeadLoss,
    LogisticLoss,
    LogitLimit,
    SoftmaxLoss,
    SquaredError,
    exponential_limit,
    sigmoid_limit,
    softmax_limit,
    softplus_limit,
)
from agt_lightning.domains.sgd import plain_sgd_settings
from agt_lightning.interval import Interval
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.passes import ValueBounds
from agt_lightning.rounding import Floats, unit_roundoff

_LOSSES: Mapping[str, type[HeadLoss]] = {kind.__name__: kind for kind in (SquaredError, LogisticLoss, SoftmaxLoss)}

_LIMITS: Mapping[str, LogitLimit] = {
    limit.__name__: limit for limit in (sigmoid_limit, softplus_limit, exponential_limit, softmax_limit)
}


@dataclass(frozen=True, eq=False)
class AdjointStep:
    """One step of the training, ready to be recorded.

    Args:
        head: the layers, one or two.
        loss: of one sample.
        data: samples, targets and poison of all processes.
        weights: w_i, (b,).
        radius: R before the step.
        boxed: the box before the step and the size of its roundings; None if a ball is kept.
    """

    head: Head
    loss: HeadLoss
    data: StepData
    weights: Tensor
    radius: float
    boxed: BoxBefore | None = None


class AdjointDomain(Domain[AdjointStep]):
    """All runs, by what their poison can do to one combination of the parameters at a time.

    The ball forgets how the training contracts in each direction, and that one choice of samples serves all parameters.
    Here the gradient of an output is carried backward through the recorded training, and each step adds the worst that
    its poison can do *along it*; the ball's radius is needed for what is of second order in the distance of the runs.

    It covers one trained linear layer, or two with a ReLU between, on anything frozen, trained by SGD without momentum
    on squared error, binary cross entropy of logits or cross entropy, and needs the ball beside it. A training step
    only records: 8 bytes a parameter, 16 bytes for each position of the batch, and each distinct sample once. Bounds
    take a replay of the training, so they are computed on demand.

    With the box beside it and no ball, the box stands for the ball's radius: for few large steps, and one output or the
    cross entropy of two classes.

    Args:
        module: at its initial parameters.
        dtype: floating point type of the bounds' computation.
        floats: which runs the bounds contain.

    Attributes:
        recorder: the steps so far; None before the first one.

    Reference:
        docs/theory.md, sections 13 and 15.
    """

    name: ClassVar[str] = "adjoint"
    reads_value_bounds: ClassVar[bool] = False
    automatic: ClassVar[bool] = False

    def __init__(self, module: nn.Module, dtype: torch.dtype, floats: Floats = "run") -> None:
        self.module = module
        self.dtype = dtype
        self.floats: Floats = floats
        self.recorder: TrajectoryRecorder | None = None
        self._loss: HeadLoss | None = None
        self._others: Mapping[str, Domain[Any]] = {}
        self._recorded: RecordedTrajectory | BoxedTrajectory | None = None

    @classmethod
    @override
    def build(cls, module: nn.Module, adversary: Adversary, config: CertificationConfig) -> Self:
        return cls(module, config.dtype, config.floats)

    @override
    def join(self, family: Mapping[str, Domain[Any]]) -> None:
        self._others = family

    @property
    def _alone_with_box(self) -> bool:
        return "ball" not in self._others and "box" in self._others

    def _box(self) -> dict[str, Interval]:
        box = self._others["box"].box()
        assert box is not None
        return box

    @property
    def _ball(self) -> BallDomain:
        ball = self._others.get("ball")
        if not isinstance(ball, BallDomain):
            raise DomainLostError("the ball is not in use any more, and bounds need its radius at every step")
        return ball

    @override
    def problems(self, setup: TrainingSetup) -> list[str]:
        return setup_problems(setup, self._others, self.dtype)

    @override
    def bound_step(self, step: Step, value_bounds: Sequence[ValueBounds]) -> AdjointStep:
        with step.processes.collective_errors():
            views = [BatchView(part, match_head_loss(part.bounded), ValueBounds()) for part in step.parts]
            batches = [view.batch(step.adversary) for view in views]
        objective = views[0].objective
        data, weights = step_data(step, batches), step.samples.weights
        if not self._alone_with_box:
            return AdjointStep(objective.head, objective.loss, data, weights, self._ball.radius)
        boxed = BoxBefore.of(self._box(), step, objective, data, self.floats)
        return AdjointStep(objective.head, objective.loss, data, weights, boxed.step.radius, boxed)

    @override
    def update(self, data: AdjointStep, optimizer_step: OptimizerStep) -> None:
        rate, decay = plain_sgd_settings(optimizer_step, data.head.parameters)
        recorder = self._recorder_of(data, optimizer_step)
        if data.boxed is None:
            rounding = self._ball.step_rounding
        else:
            _require_same_box(data.boxed, recorder)
            after = widths_of(self._box(), recorder.names, dict(self.module.named_parameters()))
            rounding = data.boxed.rounding(optimizer_step, rate, decay, norm_of(after))
            recorder.widths = [*(recorder.widths or [data.boxed.widths]), after]
        recorder.append(data.data, data.weights, (data.radius, rate, decay, rounding))
        recorder.parameters.append(self._copies(recorder.names, optimizer_step.parameters))
        self._recorded = None

    def _recorder_of(self, data: AdjointStep, optimizer_step: OptimizerStep) -> TrajectoryRecorder:
        """Return the recorder, which starts with the parameters before the first step.

        Raises:
            DomainLostError: if a later step trains other layers, or starts from other parameters than those recorded.
        """
        names = tuple(name for layer in data.head.layers for name in (layer.weight, layer.bias))
        trained = tuple(layer.trains_bias for layer in data.head.layers)
        before = self._copies(names, optimizer_step.before)
        if self.recorder is None:
            self.recorder, self._loss = TrajectoryRecorder(names, trained, [before]), data.loss
        recorder, loss = self.recorder, self._loss
        if (recorder.names, recorder.trained) != (names, trained) or not _same_loss(loss, data.loss):
            raise DomainLostError("other layers are trained than before, or by another loss")
        if not all(map(_same, before, recorder.parameters[-1])):
            raise DomainLostError("the step starts from other parameters than the one before ended in")
        return recorder

    def _copies(self, names: Sequence[str | None], values: Mapping[str, Tensor]) -> tuple[Tensor | None, ...]:
        """Copy parameters by name, those that do not move from the module."""
        return tuple(
            None if name is None else values.get(name, self.module.get_parameter(name)).detach().cpu().clone()
            for name in names
        )

    @override
    def restart_optimizer(self) -> None:
        """Do nothing: plain SGD has no state."""

    @override
    def box(self) -> dict[str, Interval] | None:
        """Return None: bounds on all parameters take a replay for each of them, and those of the ball are cheap."""
        return None

    @override
    def parameter_set(self) -> RecordedTrajectory | BoxedTrajectory | None:
        if self._recorded is None and self.recorder is not None:
            assert self._loss is not None
            so_far = self.recorder.so_far()
            if so_far.widths:
                self._recorded = BoxedTrajectory(so_far, self._loss, self._run)
            else:
                self._recorded = RecordedTrajectory(so_far, self._ball.radius, self._loss, self._run)
        return self._recorded

    @property
    def _run(self) -> torch.dtype | None:
        if self.floats == "real" or self.recorder is None:
            return None
        names = [name for name in self.recorder.names if name is not None]
        return max((self.module.get_parameter(name).dtype for name in names), key=unit_roundoff)

    @override
    def record(self) -> dict[str, object]:
        if self.recorder is None:
            return {"steps": 0}
        return {
            "steps": len(self.recorder.entries),
            "samples": self.recorder.samples,
            "bounds_count": "n samples of each batch, within the ball",
        }

    @override
    def fingerprint_tensors(self) -> Iterator[Tensor]:
        if self.recorder is not None and self.recorder.entries:
            entry = self.recorder.entries[-1]
            yield from (entry.rows, entry.weights, torch.tensor(entry.numbers, dtype=torch.float64))

    @override
    def state(self) -> dict[str, Any]:
        if self.recorder is None or self._loss is None:
            return {}
        return {
            "recorder": self.recorder.state(),
            "loss": type(self._loss).__name__,
            "settings": _settings(self._loss),
        }

    @override
    def restore(self, state: Mapping[str, Any]) -> None:
        self._recorded = None
        self.recorder = TrajectoryRecorder.restored(state["recorder"]) if state else None
        self._loss = _loss_of(state) if state else None


def _require_same_box(boxed: BoxBefore, recorder: TrajectoryRecorder) -> None:
    """Raise unless the box before a step is the recorded one, and a point before the first step."""
    if recorder.entries and not recorder.widths:
        raise DomainLostError("earlier steps were recorded with a ball, and this one with a box")
    if not recorder.widths and boxed.step.radius > 0:
        raise DomainLostError("the box is no point before the first step that is recorded")
    if recorder.widths and not all(map(_same, boxed.widths, recorder.widths[-1])):
        raise DomainLostError("the box has changed since the last step")


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other is None or (one is not None and other is not None and torch.equal(one, other))


def _same_loss(one: HeadLoss | None, other: HeadLoss) -> bool:
    return type(one) is type(other) and vars(one) == vars(other)


def _settings(loss: HeadLoss) -> dict[str, Any]:
    """Return what a loss is made from, for a checkpoint."""
    return {**vars(loss), "limits": [limit.__name__ for limit in loss.limits]}


def _loss_of(state: Mapping[str, Any]) -> HeadLoss:
    settings = dict(state["settings"])
    limits = tuple(_LIMITS[name] for name in settings.pop("limits"))
    return _LOSSES[state["loss"]](limits=limits, **settings)
