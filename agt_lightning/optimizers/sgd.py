"""Stochastic gradient descent on boxes (Algorithm 1, line 10), with momentum."""

from __future__ import annotations

from typing import ClassVar

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval
from agt_lightning.optimizers.base import (
    AbstractOptimizer,
    Group,
    change_of,
    decayed_gradient,
    moved,
    number_of,
)
from agt_lightning.optimizers.state import OptimizerState

_ROUNDINGS = 12
"""Roundings of a gradient or a buffer on its way into a parameter: decay, dampening, momentum, look-ahead, rate."""


class AbstractSGD(AbstractOptimizer):
    """An abstract `torch.optim.SGD`.

    ``b ← μ b + (1 - τ) d``, ``θ ← θ - α b``, with Nesterov ``θ ← θ - α (d + μ b)``, where ``d = ±g + λ θ``.

    The first step has ``b ← d``: no dampening. Decay is evaluated jointly with θ, so it shrinks the box, and the new b
    is substituted:

        θ ← (1 - α λ s) θ - α s (±g) - α m b,   s = 1 - τ (1 at the first step), m = μ;   Nesterov: s = 1 + μ, m = μ².

    Parameter and momentum come from the same gradients but are kept as independent intervals. Without decay this loses
    nothing: ``θ_t = θ_0 - Σ_s c_s (±g_s)`` and ``b_t = Σ_s e_s (±g_s)`` with coefficients that are products and sums of
    α, μ and 1 - τ. For α, μ >= 0 and τ <= 1 they are nonnegative, so one sequence, each g_s at the same end, reaches
    the end of θ and, negated, of b at all times: the box is the smallest for independent gradients. With decay, b
    contains terms ``λ θ`` that are treated as independent of θ: sound, but wider by a factor of order
    ``1 + 2 α λ μ / (1 - μ)`` a step.

    Reference:
        `torch.optim.SGD`; paper, Algorithm 1, and docs/theory.md, eq. (6.1), for plain SGD.

    Example:
        >>> import torch
        >>> group = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5).param_groups[0]
        >>> box, gradient = Interval(torch.tensor([2.0]), torch.tensor([3.0])), Interval.point(torch.tensor([2.0]))
        >>> AbstractSGD().update(group, box, gradient)
        Interval(lower=tensor([1.0000]), upper=tensor([2.0000]))
    """

    settings: ClassVar[frozenset[str]] = frozenset(
        {"lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize"}
    )
    moments: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    def step(
        self,
        group: Group,
        state: OptimizerState,
        box: Interval,
        gradient: Interval,
        arithmetic: Arithmetic | None = None,
    ) -> tuple[OptimizerState, Interval]:
        """Apply the updates of the class docstring; without momentum the state has no buffer, as in torch."""
        arithmetic = self.arithmetic(arithmetic, box)
        rate, decay, momentum = (number_of(group, name) for name in ("lr", "weight_decay", "momentum"))
        signed = decayed_gradient(group, box, gradient, 0.0, arithmetic)
        buffer = state.moments.get("momentum_buffer")
        if momentum == 0:
            change = change_of(signed, rate, arithmetic, _ROUNDINGS)
            return OptimizerState(state.step + 1, state.moments), _moved(box, change, rate * decay, arithmetic)
        share = 1.0 if buffer is None else 1.0 - number_of(group, "dampening")
        decayed = decayed_gradient(group, box, gradient, decay, arithmetic)
        # Without a buffer torch copies the gradient.
        new = decayed if buffer is None else change_of(decayed, share, arithmetic, _ROUNDINGS)
        weight, carried = (1.0 + momentum * share, momentum**2) if group["nesterov"] else (share, momentum)
        change = change_of(signed, rate * weight, arithmetic, _ROUNDINGS)
        if buffer is not None:
            new = change_of(buffer, momentum, arithmetic, _ROUNDINGS) + new
            change = change + change_of(buffer, rate * carried, arithmetic, _ROUNDINGS)
        state = OptimizerState(state.step + 1, {"momentum_buffer": new})
        return state, _moved(box, change, rate * decay * weight, arithmetic)


def _moved(box: Interval, change: Interval, decay: float, arithmetic: Arithmetic) -> Interval:
    """Compute ``(1 - α λ) θ - α Δ`` with the rounding of ``α λ θ``, and of the last difference."""
    if decay == 0:
        return moved(box, change, arithmetic)
    slack = box.magnitude * (abs(decay) * arithmetic.relative(_ROUNDINGS)) + _ROUNDINGS * arithmetic.least
    return arithmetic.outward(box.scaled(1.0 - decay).widened(slack) - change)
