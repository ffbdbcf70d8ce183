"""One optimizer step of one parameter: the abstract update, and the proof that training made the same one."""

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
"""Roundings on the way through one update: decay, two moments, bias corrections, root, quotient, rate, two sums."""


@dataclass(frozen=True)
class TrainedUpdate:
    """What training did to one parameter in one step, in the floating point type of the bounds.

    Args:
        before: the parameter before the step.
        gradient: the gradient that the optimizer applied.
        after: the parameter after the step.
        state_before: the optimizer's state before the step, as points; None if it was not seen.
        state_after: the same after the step.
        dtype: floating point type that training computes in.
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
        """The step that led to a parameter as it is now, with the gradient that it still holds.

        Args:
            parameter: after the step.
            before: its value before the step.
            state_before: as above.
            state_after: as above.
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
    seen: TrainedUpdate,
) -> tuple[OptimizerState, Interval]:
    """State and box after one step of a parameter.

    Training must have made the step that its counterpart makes from the training's own state, parameter and gradient;
    and the new parameter and state must lie in the new box and state intervals. Both up to rounding. The result
    contains them exactly: the hull absorbs training's own rounding, so that it cannot pile up against the next check.

    Args:
        name: the parameter's, for messages.
        counterpart: of the optimizer.
        group: its settings at this step.
        state: intervals of the optimizer's state.
        box: bounds on the parameter.
        gradient: bounds on the applied gradient in exact arithmetic.
        seen: what training did.

    Raises:
        UnsoundBoundError: naming the parameter or the state, the worst violation and its index.
    """
    applied = Interval.point(seen.gradient)
    if seen.state_before is not None:
        _require_step(name, counterpart, group, seen.state_before, Interval.point(seen.before), applied, seen)
    _require_step(name, counterpart, group, state, box, gradient.hull(applied), seen)
    new_state, new_box = counterpart.step(group, state, box, gradient)
    new_state, new_box = new_state.hull(seen.state_after), new_box.hull(Interval.point(seen.after))
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
    seen: TrainedUpdate,
) -> None:
    """Raise unless training's step is one from these intervals, in floating point.

    A float program's update is the exact one for inputs that differ by a few relative roundings (and underflow), up to
    a few relative roundings of the result. The division by a small root amplifies what happens to the inputs, so that
    goes through the update; what happens to the result is a tolerance.
    """
    types = [value.dtype for value in group.values() if isinstance(value, Tensor)]  # a rate of coarser type
    unit = _UPDATE_ROUNDINGS * max(unit_roundoff(dtype) for dtype in (seen.dtype, box.dtype, *types))
    least = torch.finfo(seen.dtype).tiny
    moments = {moment: _with_rounding(interval, unit, least) for moment, interval in state.moments.items()}
    wide_state = OptimizerState(state.step, moments)
    new_state, new_box = counterpart.step(
        group, wide_state, _with_rounding(box, unit, 0.0), _with_rounding(gradient, unit, least)
    )
    require_inside(name, seen.after, new_box, unit * (box.magnitude + new_box.magnitude), NOT_WHAT_IS_TRAINED)
    if seen.state_after.step != new_state.step:
        raise UnsoundBoundError(
            f"Expected the optimizer at step {new_state.step} of `{name}`, but it counts {seen.state_after.step}: its "
            "state comes from elsewhere, or it steps without certification. Use a new optimizer."
        )
    for moment, after in seen.state_after.moments.items():
        if moment in counterpart.moments:
            bounds = new_state.moments[moment]
            tolerance = unit * bounds.magnitude + least
            require_inside(f"optimizer state {moment} of {name}", after.lower, bounds, tolerance, NOT_WHAT_IS_TRAINED)


def _with_rounding(interval: Interval, relative: float, absolute: float) -> Interval:
    """Widen by rounding errors, which make no second moment negative."""
    return interval.widened(relative * interval.magnitude + absolute, nonnegative=interval.nonnegative)


def foreign_state_problems(
    module: nn.Module, optimizer: torch.optim.Optimizer | None, states: Mapping[str, OptimizerState]
) -> list[str]:
    """Whether the optimizer remembers steps that have no bounds."""
    if optimizer is None:
        return []
    strangers = [
        name
        for name, parameter in module.named_parameters()
        if name not in states and _remembers(optimizer.state.get(parameter, {}))
    ]
    if not strangers:
        return []
    return [
        f"The optimizer's state holds steps of {', '.join(f'`{name}`' for name in strangers)} that have no bounds. Use "
        "a new optimizer, or resume from a checkpoint that was written with `CertifiedTraining`."
    ]


def _remembers(state: Mapping[str, object]) -> bool:
    return float(state.get("step", 0)) > 0 or state.get("momentum_buffer") is not None  # type: ignore[arg-type]
