"""Clipping of the mean gradient, as ``Trainer(gradient_clip_val=...)`` does it between backward and optimizer step.

It works for each adversary but limits none: a poisoned sample still moves the mean before it is clipped. The clipping
of each sample's gradient, which Theorem D.1 requires, is in `sample_clipping`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff, unit_roundoff

_ROUNDINGS = 16
"""Roundings of a clipped entry besides the sums of squares: roots, quotient, products, and those of the bounds."""

_TORCH_SHIFT = 1e-6
"""The constant that `torch.nn.utils.clip_grad_norm_` adds to the norm."""


class MeanClipping(Protocol):
    """A clipping of one gradient over all parameters, and of bounds on it."""

    def bounds(self, gradients: Mapping[str, Interval], arithmetic: Arithmetic | None = None) -> dict[str, Interval]:
        """Bound the clipped gradient, by parameter.

        Args:
            gradients: bounds before clipping, by parameter name.
            arithmetic: of the run and of the bounds; None means that of the bounds alone.
        """

    def clip(self, parameters: Sequence[Tensor]) -> None:
        """Clip ``.grad`` in place, by the function of torch."""


@dataclass(frozen=True)
class MeanValueClipping:
    """A clipping that cuts each entry to [-c, c]: monotone, so exact; ``Trainer(gradient_clip_algorithm="value")``.

    Args:
        limit: c.

    Example:
        >>> MeanValueClipping(1.0).bounds({"w": Interval(torch.tensor([-3.0]), torch.tensor([0.5]))})
        {'w': Interval(lower=tensor([-1.0000]), upper=tensor([0.5000]))}
    """

    limit: float

    def bounds(self, gradients: Mapping[str, Interval], arithmetic: Arithmetic | None = None) -> dict[str, Interval]:
        """Return ``[clip(l), clip(u)]``, with the limit rounded to the run's type."""
        return {name: self._clipped(interval, arithmetic or _own(interval)) for name, interval in gradients.items()}

    def _clipped(self, interval: Interval, arithmetic: Arithmetic) -> Interval:
        small, large = (self.limit * (1 + sign * arithmetic.relative(1)) for sign in (-1, 1))
        return Interval.trusted(interval.lower.clamp(-large, small), interval.upper.clamp(-small, large))

    def clip(self, parameters: Sequence[Tensor]) -> None:
        """Call `torch.nn.utils.clip_grad_value_`."""
        torch.nn.utils.clip_grad_value_(parameters, self.limit)


@dataclass(frozen=True)
class MeanNormClipping:
    """A clipping to norm c over all parameters; ``Trainer(gradient_clip_algorithm="norm")``.

    The result is ``g min(1, c / (‖g‖ + 1e-6))``. An entry rises with g_j (``x / (√(x² + r²) + e)`` has the derivative's
    sign of ``r² / S + e > 0``), and at a given g_j its absolute value falls with the norm r of the other entries. So
    the upper bound is at ``g_j = u_j``, with the others at their smallest magnitude if ``u_j >= 0`` and at their
    largest if not: exact for a box of gradients, up to the rounding of a difference of squares, which is rounded
    outward.

    Args:
        limit: c.

    Example:
        >>> box = Interval(torch.tensor([0.0, 3.0]), torch.tensor([4.0, 3.0]))
        >>> MeanNormClipping(1.0).bounds({"w": box})["w"]
        Interval(lower=tensor([0.0000, 0.6000]), upper=tensor([0.8000, 1.0000]))
    """

    limit: float

    def bounds(self, gradients: Mapping[str, Interval], arithmetic: Arithmetic | None = None) -> dict[str, Interval]:
        """Bound each entry by the class's rule, with squared norms rounded outward.

        torch takes the norm of each parameter, and then of these norms. The run's norm is off by half of the errors of
        these sums; an entry is ``g min(1, c (1 + θ) / (‖g‖ + 1e-6))``, so gradients that are not clipped stay exact.
        """
        if not gradients:
            return {}
        small = torch.stack([interval.mignitude.square().sum() for interval in gradients.values()]).sum()
        large = torch.stack([interval.magnitude.square().sum() for interval in gradients.values()]).sum()
        sizes = [interval.lower.numel() for interval in gradients.values()]
        roundoff = accumulated_roundoff(sum(sizes) + 4, small.dtype)
        arithmetic = arithmetic or Arithmetic(None, small.dtype)
        slack = arithmetic.relative(max(sizes) + len(sizes) + _ROUNDINGS)
        bounds = {
            name: self._clipped(interval, small * (1 - roundoff), large * (1 + roundoff), slack)
            for name, interval in gradients.items()
        }
        if arithmetic.run is None or float(large) < torch.finfo(arithmetic.run).max / 2:
            return bounds
        # The squares of a run overflow: its norm is infinite, and all that it clips becomes zero.
        return {name: bound.hull(Interval.point(torch.zeros_like(bound.lower))) for name, bound in bounds.items()}

    def clip(self, parameters: Sequence[Tensor]) -> None:
        """Call `torch.nn.utils.clip_grad_norm_`."""
        torch.nn.utils.clip_grad_norm_(parameters, self.limit)

    def _clipped(self, interval: Interval, small: Tensor, large: Tensor, slack: float) -> Interval:
        least = (small - interval.mignitude.square()).clamp(min=0)
        most = (large - interval.magnitude.square()).clamp(min=0)
        larger = torch.full_like(interval.lower, 1 + slack)
        smaller = torch.full_like(interval.lower, 1 - slack)
        grows, falls = interval.upper >= 0, interval.lower <= 0
        upper = self._scaled(interval.upper, torch.where(grows, least, most), torch.where(grows, larger, smaller))
        lower = self._scaled(interval.lower, torch.where(falls, least, most), torch.where(falls, larger, smaller))
        return Interval.trusted(lower, upper)

    def _scaled(self, entries: Tensor, others: Tensor, factor: Tensor) -> Tensor:
        norm = (entries.square() + others).sqrt()
        return entries * (self.limit * factor / (norm + _TORCH_SHIFT)).clamp(max=1.0)


def coarsest_arithmetic(types: Mapping[str, torch.dtype] | None, own: torch.dtype) -> Arithmetic:
    """Return the roundings of a computation over parameters of several types: those of the coarsest.

    Args:
        types: floating point types of the run by parameter name; None for a run in real arithmetic.
        own: floating point type of the bounds.
    """
    return Arithmetic(max(types.values(), key=unit_roundoff) if types else None, own)


def _own(interval: Interval) -> Arithmetic:
    return Arithmetic(None, interval.dtype)


def clipped_gradients(
    clipping: MeanClipping, names: Sequence[str], gradients: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Clip these gradients by torch itself, so that the result agrees with training to the last bit.

    Args:
        clipping: the clipping that training applies.
        names: parameters in the optimizer's order, which determines the order of summation in the norm.
        gradients: gradients by parameter; not changed.
    """
    stand_ins = {name: torch.empty_like(gradients[name]) for name in names}
    for name, stand_in in stand_ins.items():
        stand_in.grad = gradients[name].clone()
    clipping.clip(list(stand_ins.values()))
    return {name: stand_in.grad for name, stand_in in stand_ins.items() if stand_in.grad is not None}
