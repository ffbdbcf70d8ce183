"""Adagrad on boxes."""

from __future__ import annotations

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


class AbstractAdagrad(AbstractOptimizer):
    """An abstract `torch.optim.Adagrad`.

    ``S ← S + d²``, ``θ ← θ - α / (1 + (t - 1) η) · d / (√S + ε)`` with ``d = ±g + λ θ``, η = ``lr_decay``.

    The quotient is written as a function of d and rises with it, so it is exact for independent S and d; it never
    exceeds 1.

    Reference:
        `torch.optim.Adagrad`.

    Example:
        >>> group = torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(1))], lr=0.5).param_groups[0]
        >>> gradient = Interval(torch.tensor([-3.0]), torch.tensor([5.0]))
        >>> AbstractAdagrad().update(group, Interval.point(torch.ones(1)), gradient)
        Interval(lower=tensor([0.5000]), upper=tensor([1.5000]))
    """

    settings: ClassVar[frozenset[str]] = frozenset(
        {"lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value", "maximize"}
    )
    moments: ClassVar[tuple[str, ...]] = ("sum",)

    def initial(self, group: Group, box: Interval) -> OptimizerState:
        """Return the accumulator at its initial value."""
        start = number_of(group, "initial_accumulator_value")
        return OptimizerState(0, {"sum": Interval.point(torch.full_like(box.lower, start), nonnegative=True)})

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
        rate = number_of(group, "lr") / (1.0 + state.step * number_of(group, "lr_decay"))
        direction = decayed_gradient(group, box, gradient, number_of(group, "weight_decay"), arithmetic)
        total, zero = nonnegative(state.moments["sum"]), Interval.point(torch.zeros_like(box.lower))
        normalized = quotient(zero, 1.0, total, 1.0, number_of(group, "eps"), direction, arithmetic=arithmetic)
        change = change_of(normalized, rate, arithmetic, ROUNDINGS, number_of(group, "eps"))
        grown = accumulated(total, 1.0, direction, 1.0, arithmetic)
        return OptimizerState(state.step + 1, {"sum": grown}), moved(box, change, arithmetic)
