"""The abstract update of one parameter in one step, with a check that training made the step that it bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agt_lightning.errors import NOT_WHAT_IS_TRAINED, UnsoundBoundError
from agt_lightning.interval import Interval, check_finite_and_ordered, require_inside
from agt_lightning.optimizers import AbstractOptimizer, OptimizerState
from agt_lightning.optimizers.base import Group
from agt_lightning.rounding import unit_roundoff

_UPDATE_ROUNDINGS = 32
"""Roundings in one update: decay, two moments, bias corrections, root, quotient, rate, two sums."""


@dataclass(frozen=True)
class TrainedUpdate:
    """An update that training made to one parameter in one step, in the floating point type of the bounds.

    Args:
        before: the parameter before the step.
        gradient: the gradient that the optimizer applied.
        after: the parameter after the step.
        state_before: the optimizer's state before the step, as points; None if it was not recorded.
        state_after: the state after the step, as points.
        dtype: floating point type in which training computes.
    """

    before: Tensor
    gradient: Tensor
    after: Tensor
    state_before: OptimizerState | None
    state_after: OptimizerState
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        parameter: Tensor,
        before: Tensor,
        state_before: OptimizerState | None,
        state_after: OptimizerState,
        dtype: torch.dtype,
    ) -> TrainedUpdate:
        """Return the update that led to the present value of a parameter, with the gradient in its ``.grad``.

        Args:
            parameter: the parameter after the step.
            before: its value before the step.
            state_before: see the class.
            state_after: see the class.
            dtype: floating point type of the bounds.
        """
        assert parameter.grad is not None
        start, gradient, end = (tensor.detach().to(dtype) for tensor in (before, parameter.grad, parameter))
        return cls(start, gradient, end, state_before, state_after, parameter.dtype)


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

    Up to rounding, training must have made the step that the counterpart makes from training's state, parameter and
    gradient, and the new parameter and state must lie in the new box and state intervals. The result contains them
    exactly: the hull absorbs the rounding errors of training, so that they cannot accumulate before the next check.

    Args:
        name: name of the parameter, for messages.
        counterpart: abstract counterpart of the optimizer.
        group: settings of the parameter's group at this step.
        state: intervals of the optimizer's state.
        box: bounds on the parameter.
        gradient: bounds on the applied gradient in exact arithmetic.
        trained: the update that training made.

    Raises:
        UnsoundBoundError: if a check fails; the message names the parameter or state, the worst violation and its
            index.
    """
    applied = Interval.point(trained.gradient)
    if trained.state_before is not None:
        _require_step(name, counterpart, group, trained.state_before, Interval.point(trained.before), applied, trained)
    _require_step(name, counterpart, group, state, box, gradient.hull(applied), trained)
    new_state, new_box = counterpart.step(group, state, box, gradient)
    new_state, new_box = new_state.hull(trained.state_after), new_box.hull(Interval.point(trained.after))
    check_finite_and_ordered(new_box, f"parameter `{name}`")
    for moment, interval in new_state.moments.items():
        check_finite_and_ordered(interval, f"optimizer state `{moment}` of `{name}`")
    return new_state, new_box


def _require_step(
    name: str,
    counterpart: AbstractOptimizer,
    group: Group,
    state: OptimizerState,
    box: Interval,
    gradient: Interval,
    trained: TrainedUpdate,
) -> None:
    """Raise unless the step of training is one from these intervals, in floating point.

    An update in floating point is the exact one for inputs that differ by a few relative roundings (and underflow), up
    to a few relative roundings of the result. The division by a small root amplifies the errors of the inputs, so these
    are propagated through the update; those of the result are a tolerance.
    """
    types = [value.dtype for value in group.values() if isinstance(value, Tensor)]  # a rate of coarser type
    unit = _UPDATE_ROUNDINGS * max(unit_roundoff(dtype) for dtype in (trained.dtype, box.dtype, *types))
    least = torch.finfo(trained.dtype).tiny
    moments = {moment: _with_rounding(interval, unit, least) for moment, interval in state.moments.items()}
    wide_state = OptimizerState(state.step, moments)
    new_state, new_box = counterpart.step(
        group, wide_state, _with_rounding(box, unit, 0.0), _with_rounding(gradient, unit, least)
    )
    require_inside(name, trained.after, new_box, unit * (box.magnitude + new_box.magnitude), NOT_WHAT_IS_TRAINED)
    if trained.state_after.step != new_state.step:
        raise UnsoundBoundError(
            f"Expected the optimizer at step {new_state.step} of `{name}`, but it counts {trained.state_after.step}: "
            "its state comes from elsewhere, or it steps without certification. Use a new optimizer."
        )
    for moment, after in trained.state_after.moments.items():
        if moment in counterpart.moments:
            bounds = new_state.moments[moment]
            tolerance = unit * bounds.magnitude + least
            require_inside(f"optimizer state {moment} of {name}", after.lower, bounds, tolerance, NOT_WHAT_IS_TRAINED)


def _with_rounding(interval: Interval, relative: float, absolute: float) -> Interval:
    """Widen by rounding errors, which do not make a second moment negative."""
    return interval.widened(relative * interval.magnitude + absolute, nonnegative=interval.nonnegative)


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
