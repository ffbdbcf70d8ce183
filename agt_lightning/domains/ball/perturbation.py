"""Perturbations of the features that enter a head, and of anything linear in them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agt_lightning.arithmetic import dual_norm, euclidean_norm
from agt_lightning.interval import Interval

_SAME = 2.0**-30
"""Samples whose half-widths differ by less than this share the largest: far above the rounding of x ± ε."""


@dataclass(frozen=True)
class Perturbation:
    """Changes Δx of the features of each sample: in a box, and for raw features in an ℓ1 or ℓ2 ball as well.

    Args:
        half_widths: largest ``|Δx_k|``, (b, d); one row (1, d) if it is the same for all samples.
        scale: radius of the ball ``{scale ∘ u : ‖u‖_p <= 1}`` for each feature, (d,); None without a ball.
        p: norm of the ball.
    """

    half_widths: Tensor
    scale: Tensor | None = None
    p: float = 2.0

    @classmethod
    def between(cls, clean: Tensor, poisoned: Interval) -> Perturbation:
        """From clean features, (b, d), and all that the adversary can make of them."""
        up = poisoned.upper - clean
        half_widths = torch.maximum(up, clean - poisoned.lower, out=up).clamp_(min=0)
        ball = poisoned.ball
        if ball is None or ball.scale.ndim != 1 or ball.p not in (1, 2):
            return cls.of(half_widths)
        return cls.of(half_widths, ball.scale, ball.p)

    @classmethod
    def of(cls, half_widths: Tensor, scale: Tensor | None = None, p: float = 2.0) -> Perturbation:
        """Keep one row of half-widths, the largest, if those of all samples agree up to rounding."""
        largest = half_widths.amax(dim=0, keepdim=True)
        same = bool((half_widths.amin(dim=0) >= (1 - _SAME) * largest).all())
        return cls(largest if same else half_widths, scale, p)

    def __getitem__(self, rows: slice) -> Perturbation:
        """Return the perturbation of the given samples."""
        return self if len(self.half_widths) == 1 else replace(self, half_widths=self.half_widths[rows])

    def norm(self) -> Tensor:
        """Largest ``‖Δx‖₂``, (b,), or (1,) if it is the same for all."""
        box: Tensor = euclidean_norm(self.half_widths, dim=1)
        return box if self.scale is None else box.clamp(max=float(self.scale.max()))

    def support(self, rows: Tensor) -> Tensor:
        """Largest ``|row · Δx|`` for shared rows (o, d), (b, o), or (1, o) if it is the same for all."""
        box = self.half_widths @ rows.abs().T
        return box if self.scale is None else torch.minimum(box, dual_norm(rows * self.scale, self.p))

    def sample_support(self, rows: Tensor) -> Tensor:
        """Largest ``|row_i · Δx_i|`` for one row per sample (b, d), (b,)."""
        shared = len(self.half_widths) == 1
        box = rows.abs() @ self.half_widths[0] if shared else (rows.abs() * self.half_widths).sum(dim=1)
        return box if self.scale is None else torch.minimum(box, dual_norm(rows * self.scale, self.p))


@dataclass(frozen=True)
class PropagatedPerturbation:
    """A perturbation of features and what it changes of a layer's results, at the nominal parameters.

    Args:
        features: the perturbation.
        norm: largest ``‖Δx‖``, (b,), or (1,) if it is the same for all samples.
        results: largest ``|row · Δx|`` for each row of the layer's weight, (b, o), or (1, o).
    """

    features: Perturbation
    norm: Tensor
    results: Tensor

    @classmethod
    def through(cls, weight: Tensor, features: Perturbation) -> PropagatedPerturbation:
        """Propagate through the rows of a weight (o, d)."""
        return cls(features, features.norm(), features.support(weight))
