"""The base class of abstract optimizers, which update the box of a parameter once for each step of the optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic, unless
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.optimizers.state import OptimizerState

Group = Mapping[str, object]
"""Settings of a parameter group at the time of the step."""

_NUMERICALLY_IRRELEVANT = frozenset({"foreach", "fused"})
"""Flags that choose an implementation: the same mathematics, other roundings."""

_REFUSED = {
    "capturable": "computes bias corrections in the parameters' precision, which rounds more than the bounds allow for",
    "differentiable": "keeps the graph of the updates, and gradients through them have no bounds",
}


class AbstractOptimizer(ABC):
    """A map from boxes of an optimizer's state, a parameter and its gradient to the boxes after one step.

    It is a pure function of its arguments; the engine keeps the states. Parameter, state and gradient are treated as
    independent.

    Attributes:
        settings: settings of a group for which there are bounds; others are refused by name.
        moments: names of the tensors in ``optimizer.state`` that are bounded, if torch has them.

    Example:
        >>> from agt_lightning.optimizers import OPTIMIZERS
        >>> issubclass(OPTIMIZERS[torch.optim.Adam], AbstractOptimizer)
        True
    """

    settings: ClassVar[frozenset[str]]
    moments: ClassVar[tuple[str, ...]]

    def problems(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """List the settings that have no bounds, each with a remedy."""
        return [
            problem
            for number, group in enumerate(optimizer.param_groups)
            for problem in self._group_problems(type(optimizer).__name__, number, group, optimizer.defaults)
        ]

    def _group_problems(self, name: str, number: int, group: Group, defaults: Group) -> list[str]:
        """List flags that are on and have no bounds; only keys of ``defaults`` are flags, as schedulers add others."""
        problems = []
        for flag in defaults:
            if flag in self.settings or flag in _NUMERICALLY_IRRELEVANT or not group.get(flag):
                continue
            reason = self.reasons().get(flag, "has no bounds")
            problems.append(
                f"`torch.optim.{name}` has `{flag}={group[flag]}` in parameter group {number}, which {reason}. Set "
                f"`{flag}={_off(group[flag])}`."
            )
        if "eps" in defaults and not number_of(group, "eps") >= _least_eps(group):
            problems.append(
                f"`torch.optim.{name}` has `eps={group['eps']}` in parameter group {number}: a gradient of zero could "
                "be divided by zero. Set `eps=1e-8`."
            )
        if any(isinstance(beta, Tensor) for beta in group.get("betas", ())):  # type: ignore[attr-defined]
            problems.append(
                f"`torch.optim.{name}` has tensors as `betas` in parameter group {number}: their bias corrections are "
                "rounded more than the bounds allow for. Use numbers."
            )
        return problems

    def reasons(self) -> Mapping[str, str]:
        """Return why flags have no bounds, for flags with a specific reason."""
        return _REFUSED

    def initial(self, group: Group, box: Interval) -> OptimizerState:
        """Return the state before the first step, by default an empty one."""
        return OptimizerState()

    @abstractmethod
    def step(
        self,
        group: Group,
        state: OptimizerState,
        box: Interval,
        gradient: Interval,
        arithmetic: Arithmetic | None = None,
    ) -> tuple[OptimizerState, Interval]:
        """Apply one step to one parameter.

        With the arithmetic of a run, the result contains the step in every order in which torch computes it: its loop
        over parameters, its ``foreach`` and its ``fused`` implementation (docs/floats.md, section 6).

        Args:
            group: settings of the parameter's group at this step.
            state: intervals of the optimizer's state.
            box: bounds on the parameter.
            gradient: bounds on the gradient of the loss in ``.grad``.
            arithmetic: of the run and of the bounds; None means a run in real arithmetic.

        Returns:
            State and box after the step.
        """

    def arithmetic(self, given: Arithmetic | None, box: Interval) -> Arithmetic:
        """Return the given arithmetic; that of the bounds alone if there is none."""
        return Arithmetic(None, box.dtype) if given is None else given

    def update(self, group: Group, box: Interval, gradient: Interval) -> Interval:
        """Return the box after a first step."""
        return self.step(group, self.initial(group, box), box, gradient)[1]

    def nominal(self, state: Mapping[str, object], step: int, dtype: torch.dtype) -> OptimizerState:
        """Return the state of the training run itself, as points.

        Args:
            state: the entry of the parameter in ``optimizer.state``.
            step: number of steps, used if the optimizer does not count them.
            dtype: floating point type of the bounds.
        """
        counted = state.get("step")
        kept = {name: state.get(name) for name in self.moments}
        points = {
            name: Interval.point(tensor.detach().to(dtype, copy=True))
            for name, tensor in kept.items()
            if isinstance(tensor, Tensor)
        }
        return OptimizerState(step if counted is None else int(counted), points)  # type: ignore[call-overload]


def number_of(group: Group, name: str) -> float:
    """Return a setting as a number; torch accepts one-element tensors as well."""
    return float(group[name])  # type: ignore[arg-type]


def decayed_gradient(group: Group, box: Interval, gradient: Interval, decay: float, arithmetic: Arithmetic) -> Interval:
    """Return ``±g + λ θ``, which torch uses as gradient; ``maximize`` flips the sign of g, not of the decay."""
    signed = -gradient if group.get("maximize") else gradient
    if not decay:
        return signed
    return arithmetic.outward(signed, 1) + scaled_box(box, decay, arithmetic)


def scaled_box(box: Interval, factor: float, arithmetic: Arithmetic) -> Interval:
    """Return ``c θ`` as a run computes it; it can underflow, but zero stays zero.

    Args:
        box: bounds on θ.
        factor: c.
        arithmetic: of the run and of the bounds.
    """
    return _times(box, factor, arithmetic, 3, arithmetic.least)


def moved(start: Interval, change: Interval, arithmetic: Arithmetic) -> Interval:
    """Return ``θ - Δ``, rounded; where Δ is zero in every run, θ as it is.

    Args:
        start: bounds on θ.
        change: bounds on Δ as a run computes it.
        arithmetic: of the run and of the bounds.

    Example:
        >>> import torch
        >>> start, change = Interval.point(torch.ones(2)), Interval.point(torch.tensor([0.0, 0.5]))
        >>> moved(start, change, Arithmetic(torch.float32, torch.float32)).width > 0
        tensor([False,  True])
    """
    result = arithmetic.outward(start - change)
    still = is_zero(change)
    if not bool(still.any()):
        return result
    lower, upper = torch.where(still, start.lower, result.lower), torch.where(still, start.upper, result.upper)
    return Interval.trusted(lower, upper)


def change_of(
    direction: Interval, rate: float, arithmetic: Arithmetic, roundings: int, divisor: float = 1.0
) -> Interval:
    """Return ``α d`` as a run computes it; zero where d is zero in every run.

    Args:
        direction: bounds on d.
        rate: α.
        arithmetic: of the run and of the bounds.
        roundings: of d, and of its product with α.
        divisor: the least number by which a run divides after its product with α, which may have underflowed.
    """
    return _times(direction, rate, arithmetic, roundings, roundings * arithmetic.least * max(1.0, 1 / divisor))


def _times(value: Interval, factor: float, arithmetic: Arithmetic, roundings: int, underflow: float) -> Interval:
    """Return a multiple of a value, rounded relatively and by underflow; zero where the value is zero in every run."""
    if factor == 0:
        return Interval.point(torch.zeros_like(value.lower))
    product = arithmetic.outward(value.scaled(factor), roundings)
    slack = unless(is_zero(value), underflow, product.lower)
    if abs(factor) < arithmetic.least:  # the factor itself loses digits in the type of the run or of the bounds
        slack = slack + value.magnitude * arithmetic.least
    return product.widened(slack)


def is_zero(value: Interval) -> Tensor:
    """Return which entries are zero and nothing else."""
    return (value.lower == 0) & (value.upper == 0)


def require_in_range(arithmetic: Arithmetic, bounds: Interval, what: str) -> None:
    """Raise if a run could compute a number that is infinite in its type, though its bounds are finite.

    Args:
        arithmetic: of the run and of the bounds.
        bounds: on the number.
        what: its name, for the message.

    Raises:
        UnsoundBoundError: with the largest size and ways out.
    """
    if largest := arithmetic.overflow(bounds):
        raise UnsoundBoundError(
            f"Expected {what} in the range of {arithmetic.run}, but a run can reach {largest:.3g}, which is infinite "
            "there. Use fewer steps, a smaller learning rate, a weaker adversary or other units of the data, or train "
            "in float64."
        )


def nonnegative(value: Interval) -> Interval:
    """Cut a second moment at zero: it is a sum of squares, but its interval may have been widened below zero."""
    return value.mapped(lambda bound: bound.clamp(min=0), nonnegative=True)


def _least_eps(group: Group) -> float:
    """Return the least number that is normal in every type of a group's parameters: less can be read as zero."""
    types = (parameter.dtype for parameter in group["params"] if parameter.is_floating_point())  # type: ignore[attr-defined]
    return max((torch.finfo(dtype).tiny for dtype in types), default=torch.finfo(torch.float64).tiny)


def _off(value: object) -> object:
    return type(value)(0) if isinstance(value, bool | int | float) else None
