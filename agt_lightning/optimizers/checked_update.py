"""The abstract update of one parameter in one step, with a check that training made the step that it bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.errors import NOT_WHAT_IS_TRAINED, UnsoundBoundError
from agt_lightning.interval import Interval, check_finite_and_ordered, require_inside
from agt_lightning.optimizers import AbstractOptimizer, OptimizerState
from agt_lightning.optimizers.base import Group, require_in_range
from agt_lightning.rounding import Floats, unit_roundoff


@dataclass(frozen=True)
class TrainedUpdate:
    """An update that training made to one parameter in one step, in the floating point type of the bounds.

    Args:
        before: the parameter before the step.
        gradient: the gradient that the optimizer applied.
        after: the parameter after the step.
        state_before: the optimizer's state before the step, as points; None if it was not recorded.
        state_after: the state after the step, as points.
        arithmetic: of the training and of the bounds.
        floats: which runs the bounds contain.
    """

    before: Tensor
    gradient: Tensor
    after: Tensor
    state_before: OptimizerState | None
    state_after: OptimizerState
    arithmetic: Arithmetic
    floats: Floats

    @classmethod
    def of(
        cls,
        parameter: Tensor,
        gradient: Tensor,
        before: Tensor,
        state_before: OptimizerState | None,
        state_after: OptimizerState,
        arithmetic: Arithmetic,
        floats: Floats,
    ) -> TrainedUpdate:
        """Return the update that led to the present value of a parameter.

        Args:
            parameter: the parameter after the step.
            gradient: see the class.
            before: its value before the step.
            state_before: see the class.
            state_after: see the class.
            arithmetic: see the class.
            floats: see the class.
        """
        return cls(
            before.detach(), gradient.detach(), parameter.detach(), state_before, state_after, arithmetic, floats
        )

    @property
    def bounds_arithmetic(self) -> Arithmetic:
        """The roundings of the runs that the bounds contain."""
        return self.arithmetic if self.floats == "run" else Arithmetic(None, self.arithmetic.own)

    def point(self, value: Tensor) -> Interval:
        """Return a value of the training in the type of the bounds, rounded outward."""
        return Interval.point(value).to(dtype=self.arithmetic.own)


def checked_update(
    name: str,
    counterpart: AbstractOptimizer,
    group: Group,
    state: OptimizerState,
    box: Interval,
    gradient: Interval,
    trained: TrainedUpdate,
) -> tuple[OptimizerState, Interval]:
    """Return the state and the box after one step of a parameter, and check them against training.

    Training must have made a step that the counterpart, with training's roundings, makes from training's state,
    parameter and gradient. Its new parameter and state must lie in the new box and state intervals: those of float runs
    contain them as they are; those of runs in real arithmetic do so once training's roundings are allowed for, and the
    hull with the training's own parameter makes them contain it.

    Args:
        name: name of the parameter, for messages.
        counterpart: abstract counterpart of the optimizer.
        group: settings of the parameter's group at this step.
        state: intervals of the optimizer's state.
        box: bounds on the parameter.
        gradient: bounds on the applied gradient.
        trained: the update that training made.

    Raises:
        UnsoundBoundError: if a check fails; the message names the parameter or state, the worst violation and its
            index.
    """
    applied = trained.point(trained.gradient)
    arithmetic = trained.bounds_arithmetic
    require_in_range(arithmetic, gradient, f"the gradient of `{name}`")
    if trained.state_before is not None:
        made = counterpart.step(group, trained.state_before, trained.point(trained.before), applied, trained.arithmetic)
        _require_inside(name, counterpart, *made, trained)
    new_state, new_box = counterpart.step(group, state, box, gradient, arithmetic)
    _require_finite(name, new_state, new_box)  # first: where a square overflows, other bounds mean nothing
    require_in_range(arithmetic, new_box, f"parameter `{name}`")
    for moment, interval in new_state.moments.items():
        require_in_range(arithmetic, interval, f"optimizer state `{moment}` of `{name}`")
    if trained.floats == "run":
        _require_inside(name, counterpart, new_state, new_box, trained)
    else:
        rounded = counterpart.step(group, state, box, gradient.hull(applied), trained.arithmetic)
        _require_inside(name, counterpart, *rounded, trained)
        new_box = new_box.hull(trained.point(trained.after))
    new_state = new_state.hull(trained.state_after)
    _require_finite(name, new_state, new_box)
    return new_state, new_box


def _require_finite(name: str, state: OptimizerState, box: Interval) -> None:
    check_finite_and_ordered(box, f"parameter `{name}`")
    for moment, interval in state.moments.items():
        check_finite_and_ordered(interval, f"optimizer state `{moment}` of `{name}`")


def _require_inside(
    name: str, counterpart: AbstractOptimizer, state: OptimizerState, box: Interval, trained: TrainedUpdate
) -> None:
    """Raise unless training's new parameter and state lie in these intervals, to the last bit."""
    require_inside(name, trained.after.to(box.dtype), box, 0.0, NOT_WHAT_IS_TRAINED)
    if trained.state_after.step != state.step:
        raise UnsoundBoundError(
            f"Expected the optimizer at step {state.step} of `{name}`, but it counts {trained.state_after.step}: "
            "its state comes from elsewhere, or it steps without certification. Use a new optimizer."
        )
    for moment, after in trained.state_after.moments.items():
        if moment in counterpart.moments:
            what = f"optimizer state {moment} of {name}"
            require_inside(what, after.lower, state.moments[moment], 0.0, NOT_WHAT_IS_TRAINED)


def arithmetic_of(parameter: Tensor, group: Group, own: torch.dtype) -> Arithmetic:
    """Return the roundings of a parameter's update: those of its type, or of a setting that is a coarser tensor.

    Args:
        parameter: the parameter.
        group: its settings.
        own: floating point type of the bounds.
    """
    types = [value.dtype for value in group.values() if isinstance(value, Tensor) and value.is_floating_point()]
    return Arithmetic(max((parameter.dtype, *types), key=unit_roundoff), own)


def foreign_state_problems(
    module: nn.Module, optimizer: torch.optim.Optimizer | None, states: Mapping[str, OptimizerState]
) -> list[str]:
    """Return a problem if the state of the optimizer contains steps that have no bounds."""
    if optimizer is None:
        return []
    unbounded = [
        name
        for name, parameter in module.named_parameters()
        if name not in states and _has_steps(optimizer.state.get(parameter, {}))
    ]
    if not unbounded:
        return []
    return [
        f"The optimizer's state holds steps of {', '.join(f'`{name}`' for name in unbounded)} that have no bounds. Use "
        "a new optimizer, or resume from a checkpoint that was written with `CertifiedTraining`."
    ]


def _has_steps(state: Mapping[str, object]) -> bool:
    return float(state.get("step", 0)) > 0 or state.get("momentum_buffer") is not None  # type: ignore[arg-type]
