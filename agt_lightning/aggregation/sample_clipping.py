"""Clipping of each sample's gradient before the mean, as Theorem D.1 requires (equation 24).

The unbounded adversary needs it: a clipped gradient is bounded whatever the sample is. Clipping maps bounds on
gradients to bounds on clipped gradients, and points to points. It is not Lightning's ``gradient_clip_val``, which clips
the mean: see `mean_clipping`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff

_ROUNDINGS = 16
"""Roundings of a squared norm besides its sums, and of a clipped entry."""


class Clipping(Protocol):
    """A map from bounds on gradients to bounds on clipped gradients."""

    @property
    def kappa(self) -> float:
        """The clipping level κ."""

    def __call__(self, block: Interval) -> Interval:
        """Clip a block of shape (e, b)."""


class SampleClipping(Protocol):
    """A rule by which training clips the gradient of each sample; the adversary supplies it."""

    def fitted(self, gradients: Sequence[FactoredGradient]) -> Clipping:
        """Return the clipping of one step.

        Args:
            gradients: bounds on the gradients of all trainable parameters, for the same samples.
        """


@dataclass(frozen=True)
class SampleNormClipping:
    """A rule that scales each sample's whole gradient to Euclidean norm at most κ.

    Args:
        kappa: κ.
    """

    kappa: float

    def fitted(self, gradients: Sequence[FactoredGradient]) -> Clipping:
        """Return the clipping for the norms of these gradients."""
        return NormClipping.of(self.kappa, gradients)


@dataclass(frozen=True)
class ValueClipping:
    """A rule, and its own clipping, that cuts each entry to [-κ, κ]: monotone, so exact.

    Example:
        >>> ValueClipping(1.0)(Interval(torch.tensor([[-3.0]]), torch.tensor([[0.5]])))
        Interval(lower=tensor([[-1.]]), upper=tensor([[0.5000]]))
    """

    kappa: float

    def fitted(self, gradients: Sequence[FactoredGradient]) -> Clipping:
        """Return this clipping, which does not depend on the gradients."""
        return self

    def __call__(self, block: Interval) -> Interval:
        """Return ``[clip(l), clip(u)]``."""
        return block.mapped(lambda bound: bound.clamp(-self.kappa, self.kappa))


@dataclass(frozen=True)
class NormClipping:
    """A clipping that scales each sample's whole gradient to Euclidean norm at most κ; exact for a box of gradients.

    An entry ``g_j min(1, κ / ‖g‖)`` rises with g_j. At a given g_j its absolute value is largest if the other entries
    are smallest. So the upper bound is at ``g_j = u_j``, with the others at their smallest magnitude if ``u_j >= 0``
    and at their largest if not.

    Args:
        kappa: κ.
        square_norms: ‖g‖² over all parameters, as computed from bounds on g, shape (b,); a point if g is one.
        elements: number of elements of g, for the rounding of its norm.
    """

    kappa: float
    square_norms: Interval
    elements: int = 2**20

    @classmethod
    def of(cls, kappa: float, gradients: Sequence[FactoredGradient]) -> NormClipping:
        """Return the clipping by the norm over several parameters.

        Args:
            kappa: κ.
            gradients: the gradients of all trainable parameters.
        """
        sums = [gradient.square_sums() for gradient in gradients]
        lower = torch.stack([bounds.lower for bounds in sums]).sum(dim=0)
        upper = torch.stack([bounds.upper for bounds in sums]).sum(dim=0)
        elements = sum(gradient.elements for gradient in gradients)
        if torch.equal(lower, upper):
            return cls(kappa, Interval.point(lower, nonnegative=True), elements)
        return cls(kappa, Interval.trusted(lower, upper, nonnegative=True), elements)

    def __call__(self, block: Interval) -> Interval:
        """Clip a block, whose entries are part of ``square_norms``.

        Entries that are points are clipped to intervals where the norm, which other entries enter, is no point.
        """
        roundoff = accumulated_roundoff(2 * self.elements + _ROUNDINGS, block.dtype)
        slack = roundoff * self.square_norms.upper  # a difference of large squares
        least = (self.square_norms.lower - block.mignitude.square() - slack).clamp(min=0)
        if block.is_point and self.square_norms.is_point:
            others = (self.square_norms.lower - block.mignitude.square()).clamp(min=0)
            return Interval.point(self._scaled(block.lower, others))
        most = (self.square_norms.upper - block.magnitude.square() + slack).clamp(min=0)
        upper = self._scaled(block.upper, torch.where(block.upper >= 0, least, most))
        lower = self._scaled(block.lower, torch.where(block.lower <= 0, least, most))
        return Arithmetic(None, block.dtype).outward(Interval.trusted(lower, upper), _ROUNDINGS)

    def _scaled(self, entries: Tensor, others: Tensor) -> Tensor:
        norm = (entries.square() + others).sqrt()
        return entries * torch.clamp(self.kappa / norm, max=1.0)
