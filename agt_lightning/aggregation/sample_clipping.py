"""Bounds of clipped per-sample gradients (equation 24); on points, the clipped gradients themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff

_ROUNDINGS = 16
"""Of a squared norm: a product of two sums of squares, which torch adds in pairs, as deep as their logarithm."""


class Clipping(Protocol):
    """Maps bounds on gradients to bounds on clipped gradients."""

    @property
    def kappa(self) -> float:
        """The clipping level κ."""

    def __call__(self, block: Interval) -> Interval:
        """Clip a block of shape (e, b)."""


class SampleClipping(Protocol):
    """How training clips the gradient of each sample; the adversary that needs it states it."""

    def fitted(self, gradients: Sequence[FactoredGradient]) -> Clipping:
        """Return the clipping of one step.

        Args:
            gradients: of all trainable parameters, with the same samples.
        """


@dataclass(frozen=True)
class SampleNormClipping:
    """Scale each sample's whole gradient to Euclidean norm at most κ.

    Args:
        kappa: κ.
    """

    kappa: float

    def fitted(self, gradients: Sequence[FactoredGradient]) -> Clipping:
        """Return the clipping by bounds on the norms of these gradients."""
        return NormClipping.of(self.kappa, gradients)


@dataclass(frozen=True)
class ValueClipping:
    """Every entry cut to [-κ, κ]: monotone, so exact.

    Example:
        >>> ValueClipping(1.0)(Interval(torch.tensor([[-3.0]]), torch.tensor([[0.5]])))
        Interval(lower=tensor([[-1.]]), upper=tensor([[0.5000]]))
    """

    kappa: float

    def fitted(self, gradients: Sequence[FactoredGradient]) -> Clipping:
        """Return this clipping, which depends on no norm."""
        return self

    def __call__(self, block: Interval) -> Interval:
        """``[clip(l), clip(u)]``."""
        return block.mapped(lambda bound: bound.clamp(-self.kappa, self.kappa))


@dataclass(frozen=True)
class NormClipping:
    """Each sample's whole gradient scaled to Euclidean norm at most κ; exact for the box of gradients.

    An entry ``g_j min(1, κ / ‖g‖)`` rises with g_j. At a given g_j its absolute value is largest where the other
    entries are smallest. So the upper bound is at ``g_j = u_j`` with the others at their smallest magnitude if
    ``u_j >= 0``, at their largest if not.

    Args:
        kappa: κ.
        square_norms: bounds on ‖g‖² over all parameters, shape (b,).
    """

    kappa: float
    square_norms: Interval

    @classmethod
    def of(cls, kappa: float, gradients: Sequence[FactoredGradient]) -> NormClipping:
        """Clipping by the norm over several parameters.

        Args:
            kappa: κ.
            gradients: the gradients of all trainable parameters.
        """
        sums = [gradient.square_sums() for gradient in gradients]
        lower = torch.stack([bounds.lower for bounds in sums]).sum(dim=0)
        upper = torch.stack([bounds.upper for bounds in sums]).sum(dim=0)
        return cls(kappa, Interval.trusted(lower, upper, nonnegative=True))

    def __call__(self, block: Interval) -> Interval:
        """Clip a block; its entries are part of ``square_norms``."""
        slack = accumulated_roundoff(_ROUNDINGS, block.dtype) * self.square_norms.upper  # a difference of large squares
        least = (self.square_norms.lower - block.mignitude.square() - slack).clamp(min=0)
        if block.is_point:
            others = (self.square_norms.lower - block.mignitude.square()).clamp(min=0)
            return Interval.point(self._scaled(block.lower, others))
        most = (self.square_norms.upper - block.magnitude.square() + slack).clamp(min=0)
        upper = self._scaled(block.upper, torch.where(block.upper >= 0, least, most))
        lower = self._scaled(block.lower, torch.where(block.lower <= 0, least, most))
        return Interval.trusted(lower, upper)

    def _scaled(self, entries: Tensor, others: Tensor) -> Tensor:
        norm = (entries.square() + others).sqrt()
        return entries * torch.clamp(self.kappa / norm, max=1.0)
