"""Losses of one output: how far gradient and curvature can move with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.domains.losses import HeadLoss, SquaredError
from agt_lightning.rounding import accumulated_roundoff

_ELEMENTARY = 256
"""Roundings of a sigmoid, of its slope and of differences of them, relative to one."""


@dataclass(frozen=True)
class ScalarLoss:
    """``ℓ(f, y)`` of one output with the slope ``scale · σ(f)`` or ``2 scale · f``, less a multiple of the label.

    Args:
        scale: factor in front.
        squared: the squared error; otherwise the logistic loss, which cross entropy of two classes is.
    """

    scale: float
    squared: bool

    @classmethod
    def of(cls, loss: HeadLoss) -> ScalarLoss:
        """Return the loss as one of a single output."""
        return cls(loss.scale, isinstance(loss, SquaredError))

    def curvature(self, outputs: Tensor) -> Tensor:
        """Return λ at the outputs, (b,)."""
        return torch.full_like(outputs, 2 * self.scale) if self.squared else self.scale * _bell(outputs)

    def change(self, outputs: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Bound ``|Δg|`` and ``|Δg - λΔf|`` for outputs that move by at most ``reach``, (b,) each.

        ``σ(f + t) - σ(f) - σ'(f) t`` has its extremes over an interval at its ends, or at ``t = -2f``, where its slope
        is zero as at ``t = 0``.
        """
        if self.squared:
            return 2 * self.scale * reach, torch.zeros_like(reach)
        here, slope = outputs.sigmoid(), _bell(outputs)
        up, down = (outputs + reach).sigmoid() - here, here - (outputs - reach).sigmoid()
        mirrored = torch.where(2 * outputs.abs() <= reach * (1 + 1e-9), 1 - 2 * here + 2 * slope * outputs, 0.0)
        ends = torch.maximum((up - slope * reach).abs(), (down - slope * reach).abs())
        slack = accumulated_roundoff(_ELEMENTARY, torch.float64) * (1 + outputs.abs() + reach)
        slack = torch.where(reach > 0, slack, 0.0)
        return self.scale * (torch.maximum(up, down) + slack), self.scale * (
            torch.maximum(ends, mirrored.abs()) + slack
        )

    def curvatures(self, outputs: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Bound ``ℓ''`` and ``|ℓ'' - λ|`` over outputs that move by at most ``reach``, (b,) each."""
        if self.squared:
            return torch.full_like(outputs, 2 * self.scale), torch.zeros_like(outputs)
        nearest, farthest = (outputs.abs() - reach).clamp(min=0), outputs.abs() + reach
        top, bottom, here = _bell(nearest), _bell(farthest), _bell(outputs)
        slack = accumulated_roundoff(_ELEMENTARY, torch.float64)
        return self.scale * (top + slack), self.scale * (torch.maximum(top - here, here - bottom) + slack)


def _bell(outputs: Tensor) -> Tensor:
    """``σ'``, without cancellation."""
    return outputs.sigmoid() * (-outputs).sigmoid()
