"""Adam and AdamW on boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

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
    scaled_box,
)
from agt_lightning.optimizers.quotient import ROUNDINGS, accumulated, quotient
from agt_lightning.optimizers.state import OptimizerState
from agt_lightning.rounding import unit_roundoff


class AbstractAdam(AbstractOptimizer):
    """An abstract `torch.optim.Adam`.

    ``m ← β1 m + (1 - β1) d``, ``v ← β2 v + (1 - β2) d²``, ``θ ← θ - α (m / c1) / (√(v / c2) + ε)``.

    ``d = ±g + λ θ`` (``±g`` with decoupled decay, where ``θ ← (1 - α λ) θ`` first, evaluated jointly), c1 = 1 - β1ᵗ,
    c2 = 1 - β2ᵗ. The step is the intersection of two bounds.

    1. The new m and v are written as functions of d, and ``(β1 m + (1 - β1) d) / (√(β2 v + (1 - β2) d²) + ε √c2)`` is
       bounded exactly for independent m, v and d (`agt_lightning.optimizers.quotient`).
    2. The ratio ``r = m / √v`` has its own interval, with ``r ← (β1 r + (1 - β1) y) / √(β2 + (1 - β2) y²)``,
       ``y = d / √v``, bounded in the same manner; the step is ``r √v / (√v + ε √c2)`` up to the factor ``√c2 / c1``.

    For all gradients, the second gives ``r² <= K_t``, ``K_t = (β1² / β2) K_{t-1} + (1 - β1)² / (1 - β2)``, K_0 = 0: the
    data-independent cap, ``C_t = √(K_t c2) / c1`` for the step, attained by ``g_s ∝ (β1 / β2)^(t - s)``. It needs the
    zero initial state, and holds for moments that change from step to step. After a step with β2 = 0, v forgets what m
    remembers, so the first bound is the only one from there on. With AMSGrad the divisor uses ``max_s v_s >= v``, so
    the cap stays.

    Reference:
        `torch.optim.Adam`, `torch.optim.AdamW`. The cap, docs/theory.md, eq. (6.2): Cauchy-Schwarz,
        ``(Σ w_s g_s)² <= Σ (w_s² / u_s) Σ u_s g_s²``.

    Example:
        >>> group = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.5).param_groups[0]
        >>> gradient = Interval(torch.tensor([-3.0]), torch.tensor([5.0]))
        >>> AbstractAdam().update(group, Interval.point(torch.ones(1)), gradient)
        Interval(lower=tensor([0.5000]), upper=tensor([1.5000]))
    """

    settings: ClassVar[frozenset[str]] = frozenset(
        {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay"}
    )
    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    decoupled: ClassVar[bool] = False

    def initial(self, group: Group, box: Interval) -> OptimizerState:
        """Return moments of zero, and with them a ratio of zero."""
        zero = Interval.point(torch.zeros_like(box.lower), nonnegative=True)
        names = ["exp_avg", "exp_avg_sq", "ratio"] + (["max_exp_avg_sq"] if group["amsgrad"] else [])
        return OptimizerState(0, dict.fromkeys(names, zero))

    def step(
        self,
        group: Group,
        state: OptimizerState,
        box: Interval,
        gradient: Interval,
        arithmetic: Arithmetic | None = None,
    ) -> tuple[OptimizerState, Interval]:
        """Intersect both bounds on the step, and update the moments."""
        arithmetic = self.arithmetic(arithmetic, box)
        beta1, beta2 = (float(beta) for beta in group["betas"])  # type: ignore[attr-defined]
        rate, decay, count = number_of(group, "lr"), number_of(group, "weight_decay"), state.step + 1
        decoupled = bool(group.get("decoupled_weight_decay", self.decoupled))
        direction = decayed_gradient(group, box, gradient, 0.0 if decoupled else decay, arithmetic)
        m, v = state.moments["exp_avg"], nonnegative(state.moments["exp_avg_sq"])
        largest = nonnegative(state.moments["max_exp_avg_sq"]) if group["amsgrad"] else None
        correction = math.sqrt(1.0 - beta2**count)
        shift = number_of(group, "eps") * correction
        decayed_m, decayed_v = _kept(m, beta1, arithmetic), v.scaled(beta2)
        normalized = quotient(
            decayed_m, 1.0 - beta1, decayed_v, 1.0 - beta2, shift, direction, largest, arithmetic=arithmetic
        )
        kept, added = (
            change_of(part, share, arithmetic, ROUNDINGS)
            for part, share in ((decayed_m, 1.0), (direction, 1.0 - beta1))
        )
        moments = {
            **state.moments,
            "exp_avg": kept + added,
            "exp_avg_sq": accumulated(v, beta2, direction, 1.0 - beta2, arithmetic),
        }
        if largest is not None:
            moments["max_exp_avg_sq"] = _maximum(largest, moments["exp_avg_sq"])
        ratio = moments.pop("ratio", None)
        if ratio is not None and beta2 > 0:
            lost = 2 * count * arithmetic.least
            moments["ratio"] = _ratio(ratio, v, direction, beta1, beta2, lost, arithmetic)
            limited = _from_ratio(moments, None if largest is None else moments["max_exp_avg_sq"], shift)
            limited = arithmetic.outward(limited, ROUNDINGS)
            normalized = normalized.intersect(limited.widened(moments["ratio"].magnitude * (math.sqrt(lost) / shift)))
        start = _shrunk(box, rate * decay, arithmetic) if decoupled and rate * decay else box
        # The corrections are differences from one, in double precision: their errors are relative to one.
        corrections = 8 * unit_roundoff(torch.float64) * (1 / (1.0 - beta1**count) + 1 / (1.0 - beta2**count))
        change = change_of(
            normalized, rate * correction / (1.0 - beta1**count), arithmetic, ROUNDINGS, number_of(group, "eps")
        )
        return OptimizerState(count, moments), moved(start, change.widened_relatively(corrections), arithmetic)

    def nominal(self, state: Mapping[str, object], step: int, dtype: torch.dtype) -> OptimizerState:
        """Return the run's moments and their ratio, with the smallest normal number for v where v underflowed."""
        nominal, v = super().nominal(state, step, dtype), state.get("exp_avg_sq")
        if not isinstance(v, Tensor):
            return nominal
        least = v.detach().to(dtype).clamp(min=max(torch.finfo(v.dtype).tiny, torch.finfo(dtype).tiny))
        ratio = nominal.moments["exp_avg"].lower / least.sqrt()
        return OptimizerState(nominal.step, {**nominal.moments, "ratio": Interval.point(ratio)})


class AbstractAdamW(AbstractAdam):
    """An `AbstractAdam` with decoupled decay.

    Example:
        >>> group = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.5, weight_decay=1.0).param_groups[0]
        >>> box = Interval(torch.tensor([1.0]), torch.tensor([2.0]))
        >>> AbstractAdamW().update(group, box, Interval.point(torch.zeros(1)))
        Interval(lower=tensor([0.5000]), upper=tensor([1.0000]))
    """

    decoupled: ClassVar[bool] = True


def _ratio(
    ratio: Interval, v: Interval, direction: Interval, beta1: float, beta2: float, lost: float, arithmetic: Arithmetic
) -> Interval:
    """Bound ``m / √(v + c)`` after step t; c <= 2 t η is what underflow takes from v in real arithmetic.

    If v + c = 0, any value is right, since m = 0 then, as long as β2 > 0 in all steps so far.
    """
    root = Interval.trusted(v.lower.sqrt(), (v.upper + lost).sqrt())
    y = Interval.trusted(
        _divided(direction.lower, torch.where(direction.lower >= 0, root.upper, root.lower)),
        _divided(direction.upper, torch.where(direction.upper >= 0, root.lower, root.upper)),
    )
    base = Interval.point(torch.full_like(root.lower, beta2))
    return quotient(_kept(ratio, beta1, arithmetic), 1.0 - beta1, base, 1.0 - beta2, 0.0, y, arithmetic=arithmetic)


def _kept(m: Interval, beta1: float, arithmetic: Arithmetic) -> Interval:
    """Bound ``β1 m``; for β1 below one half torch takes the factor as ``1 - fl(1 - β1)``, which is right up to u."""
    kept = m.scaled(beta1)
    return kept if beta1 >= 0.5 else kept.widened(m.magnitude * arithmetic.relative(2))


def _shrunk(box: Interval, share: float, arithmetic: Arithmetic) -> Interval:
    """Bound ``(1 - α λ) θ``, where the difference is right up to u (1 + α λ), or ``θ - α λ θ``."""
    return scaled_box(box, 1.0 - share, arithmetic).widened(box.magnitude * (abs(share) * arithmetic.relative(4)))


def _divided(value: Tensor, root: Tensor) -> Tensor:
    """Divide, with an infinite quotient cut to one whose square is finite; the ratio is the same up to rounding."""
    limit = math.sqrt(torch.finfo(value.dtype).max) / 2**10
    return (value / root).nan_to_num(nan=0.0).clamp(-limit, limit)


def _from_ratio(moments: Mapping[str, Interval], largest: Interval | None, shift: float) -> Interval:
    """Bound ``r s / (√max v + e)`` with ``s = √v`` and ``m = r s``.

    For r > 0 it rises with r and s, and ``r s <= m_u`` keeps s below ``m_u / r_u``; for r < 0 it is largest at the
    smallest s. The divisor is at least s + e.
    """
    m, v, ratio = moments["exp_avg"], moments["exp_avg_sq"], moments["ratio"]
    root = v.upper.sqrt()
    floor = torch.zeros_like(root) if largest is None else largest.lower.sqrt()
    low = v.lower.sqrt() / ((v.lower if largest is None else largest.upper).sqrt() + shift)

    def largest_step(ratio: Tensor, m: Tensor) -> Tensor:
        most = torch.minimum(root, torch.where(ratio > 0, m.clamp(min=0) / ratio, torch.inf))
        return ratio * torch.where(ratio >= 0, most / (torch.maximum(most, floor) + shift), low)

    return Interval.trusted(-largest_step(-ratio.lower, -m.lower), largest_step(ratio.upper, m.upper))


def _maximum(first: Interval, second: Interval) -> Interval:
    return Interval.trusted(torch.maximum(first.lower, second.lower), torch.maximum(first.upper, second.upper))
