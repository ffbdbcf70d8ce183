"""RMSprop on boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval
from agt_lightning.optimizers.base import (
    AbstractOptimizer,
    Group,
    change_of,
    decayed_gradient,
    moved,
    nonnegative,
    number_of,
)
from agt_lightning.optimizers.quotient import ROUNDINGS, accumulated, quotient
from agt_lightning.optimizers.state import OptimizerState


class AbstractRMSprop(AbstractOptimizer):
    """An abstract `torch.optim.RMSprop`.

    ``v ← a v + (1 - a) d²``, ``b ← μ b + d / (√v + ε)``, ``θ ← θ - α b`` with ``d = ±g + λ θ``.

    The quotient is written as a function of d and rises with it, so it is exact for independent v and d; it never
    exceeds ``1 / √(1 - a)``. The momentum is linear in the quotients and is substituted into the update of θ, as for
    SGD.

    Reference:
        `torch.optim.RMSprop`; a is its ``alpha``, α its ``lr``.

    Example:
        >>> group = torch.optim.RMSprop([torch.nn.Parameter(torch.zeros(1))], lr=0.1, alpha=0.75).param_groups[0]
        >>> gradient = Interval(torch.tensor([-3.0]), torch.tensor([5.0]))
        >>> AbstractRMSprop().update(group, Interval.point(torch.ones(1)), gradient)
        Interval(lower=tensor([0.8000]), upper=tensor([1.2000]))
    """

    settings: ClassVar[frozenset[str]] = frozenset({"lr", "momentum", "alpha", "eps", "weight_decay", "maximize"})
    moments: ClassVar[tuple[str, ...]] = ("square_avg", "momentum_buffer")

    def reasons(self) -> Mapping[str, str]:
        """Add ``centered``: a variance is a difference of moments, which no bound keeps away from zero."""
        centered = "divides by the root of a difference, which rounding can make negative"
        return {**super().reasons(), "centered": centered}

    def initial(self, group: Group, box: Interval) -> OptimizerState:
        """Return moments of zero."""
        zero = Interval.point(torch.zeros_like(box.lower), nonnegative=True)
        momentum = number_of(group, "momentum") > 0
        return OptimizerState(
            0, dict.fromkeys(("square_avg", "momentum_buffer") if momentum else ("square_avg",), zero)
        )

    def step(
        self,
        group: Group,
        state: OptimizerState,
        box: Interval,
        gradient: Interval,
        arithmetic: Arithmetic | None = None,
    ) -> tuple[OptimizerState, Interval]:
        """Apply the updates of the class docstring."""
        arithmetic = self.arithmetic(arithmetic, box)
        rate, decay, momentum = (number_of(group, name) for name in ("lr", "weight_decay", "momentum"))
        memory = number_of(group, "alpha")
        direction = decayed_gradient(group, box, gradient, decay, arithmetic)
        before = nonnegative(state.moments["square_avg"])
        kept = before.scaled(memory)
        zero = Interval.point(torch.zeros_like(box.lower))
        normalized = quotient(zero, 1.0, kept, 1.0 - memory, number_of(group, "eps"), direction, arithmetic=arithmetic)
        moments = {**state.moments, "square_avg": accumulated(before, memory, direction, 1.0 - memory, arithmetic)}
        descent = normalized
        if momentum > 0:
            buffer = change_of(state.moments["momentum_buffer"], momentum, arithmetic, ROUNDINGS)
            descent = moments["momentum_buffer"] = buffer + arithmetic.outward(normalized)
        change = change_of(descent, rate, arithmetic, ROUNDINGS, number_of(group, "eps"))
        return OptimizerState(state.step + 1, moments), moved(box, change, arithmetic)
