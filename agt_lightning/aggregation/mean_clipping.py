"""Clipping of the mean gradient, as Lightning does it between backward and optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff

_TORCH_SHIFT = 1e-6
"""What `torch.nn.utils.clip_grad_norm_` adds to the norm."""


class MeanClipping(Protocol):
    """Clips one gradient over all parameters, and bounds on it."""

    def bounds(self, gradients: Mapping[str, Interval]) -> dict[str, Interval]:
        """Bounds on the clipped gradient, by parameter."""

    def clip(self, parameters: Sequence[Tensor]) -> None:
        """Clip ``.grad`` in place, by torch's own function."""


@dataclass(frozen=True)
class MeanValueClipping:
    """Every entry cut to [-c, c]: monotone, so exact; ``Trainer(gradient_clip_algorithm="value")``.

    Args:
        limit: c.

    Example:
        >>> MeanValueClipping(1.0).bounds({"w": Interval(torch.tensor([-3.0]), torch.tensor([0.5]))})
        {'w': Interval(lower=tensor([-1.]), upper=tensor([0.5000]))}
    """

    limit: float

    def bounds(self, gradients: Mapping[str, Interval]) -> dict[str, Interval]:
        """``[clip(l), clip(u)]``."""
        return {
            name: interval.mapped(lambda bound: bound.clamp(-self.limit, self.limit))
            for name, interval in gradients.items()
        }

    def clip(self, parameters: Sequence[Tensor]) -> None:
        """`torch.nn.utils.clip_grad_value_`."""
        torch.nn.utils.clip_grad_value_(parameters, self.limit)


@dataclass(frozen=True)
class MeanNormClipping:
    """``g min(1, c / (‖g‖ + 1e-6))`` with the norm over all parameters; ``Trainer(gradient_clip_algorithm="norm")``.

    An entry rises with g_j (``x / (√(x² + r²) + e)`` has the derivative's sign of ``r² / S + e > 0``), and at a given
    g_j its absolute value falls with the norm r of the other entries. So the upper bound is at ``g_j = u_j``, the
    others at their smallest magnitude if ``u_j >= 0`` and at their largest if not: exact for the box of gradients, up
    to the rounding of a difference of squares, which is rounded outward.

    Args:
        limit: c.

    Example:
        >>> box = Interval(torch.tensor([0.0, 3.0]), torch.tensor([4.0, 3.0]))
        >>> MeanNormClipping(1.0).bounds({"w": box})["w"]
        Interval(lower=tensor([0.0000, 0.6000]), upper=tensor([0.8000, 1.0000]))
    """

    limit: float

    def bounds(self, gradients: Mapping[str, Interval]) -> dict[str, Interval]:
        """Each entry at its own end, the others at theirs."""
        if not gradients:
            return {}
        small = torch.stack([interval.mignitude.square().sum() for interval in gradients.values()]).sum()
        large = torch.stack([interval.magnitude.square().sum() for interval in gradients.values()]).sum()
        count = sum(interval.lower.numel() for interval in gradients.values())
        roundoff = accumulated_roundoff(count + 2, small.dtype)
        return {
            name: self._clipped(interval, small * (1 - roundoff), large * (1 + roundoff))
            for name, interval in gradients.items()
        }

    def clip(self, parameters: Sequence[Tensor]) -> None:
        """`torch.nn.utils.clip_grad_norm_`."""
        torch.nn.utils.clip_grad_norm_(parameters, self.limit)

    def _clipped(self, interval: Interval, small: Tensor, large: Tensor) -> Interval:
        least = (small - interval.mignitude.square()).clamp(min=0)
        most = (large - interval.magnitude.square()).clamp(min=0)
        upper = self._scaled(interval.upper, torch.where(interval.upper >= 0, least, most))
        lower = self._scaled(interval.lower, torch.where(interval.lower <= 0, least, most))
        return Interval.trusted(lower, upper)

    def _scaled(self, entries: Tensor, others: Tensor) -> Tensor:
        norm = (entries.square() + others).sqrt()
        return entries * (self.limit / (norm + _TORCH_SHIFT)).clamp(max=1.0)


def clipped_gradients(
    clipping: MeanClipping, names: Sequence[str], gradients: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What torch makes of these gradients, to the last bit.

    Args:
        clipping: how to clip.
        names: parameters in the order in which the optimizer holds them; it decides the order of the norm's sum.
        gradients: by parameter; not changed.
    """
    twins = {name: torch.empty_like(gradients[name]) for name in names}
    for name, twin in twins.items():
        twin.grad = gradients[name].clone()
    clipping.clip(list(twins.values()))
    return {name: twin.grad for name, twin in twins.items() if twin.grad is not None}
