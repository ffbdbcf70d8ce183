"""What the adversary can add to the gradient of the loss by labels, along any combination of outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.step_data import Poison
from agt_lightning.domains.losses import HeadLoss, SoftmaxLoss
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels


@dataclass(frozen=True, eq=False)
class LabelMoves(ABC):
    """Changes q of ``∂ℓ/∂f`` of each sample, which for the losses that are covered do not depend on f.

    Args:
        largest: upper bound on ‖q‖, (b,); zero for samples that cannot be poisoned.
    """

    largest: Tensor

    @abstractmethod
    def support(self, along: Tensor, rows: slice) -> Tensor:
        """Return ``max over q of q · φ``, at least zero, (t, Q).

        Args:
            along: φ, (t, Q, K).
            rows: the t samples.

        Reference:
            docs/theory.md, eq. (13.15).
        """

    @staticmethod
    def of(poison: Poison, loss: HeadLoss, upward: float, shape: torch.Size) -> LabelMoves:
        """Return the moves that poison can make.

        Args:
            poison: of the samples.
            loss: of one sample.
            upward: above the rounding of products.
            shape: of the outputs, (b, K).
        """

        def spread(values: Tensor) -> Tensor:
            """Give poisonable samples their rows, and the others zeros."""
            return values.new_zeros(shape[0], *values.shape[1:]).index_copy(0, poison.rows, values)

        largest = spread(upward * loss.label_change(poison.labels, shape[1]).double())
        clean, poisoned = poison.labels.clean, poison.labels.poisoned
        if isinstance(poisoned, ClassLabels):
            assert isinstance(loss, SoftmaxLoss)
            own, reach = poisoned.index.reshape(-1).long(), poisoned.reachable(shape[1])
            return ClassMoves(largest, spread(own), spread(reach), loss.scale * loss.label_weight)
        assert isinstance(clean, Interval)
        fall, rise = (poisoned.upper - clean.lower).clamp(min=0), (clean.lower - poisoned.lower).clamp(min=0)
        lower, upper = (loss.label_slope * upward * each.reshape(len(each), -1) for each in (fall, rise))
        return NumberMoves(largest, -spread(lower), spread(upper))


@dataclass(frozen=True, eq=False)
class NumberMoves(LabelMoves):
    """Labels that are numbers.

    Args:
        lower: of q, (b, K).
        upper: the same.
    """

    lower: Tensor
    upper: Tensor

    @override
    def support(self, along: Tensor, rows: slice) -> Tensor:
        lower, upper = self.lower[rows, None], self.upper[rows, None]
        box = torch.maximum(along * lower, along * upper).sum(dim=2)
        ball: Tensor = self.largest[rows, None] * euclidean_norm(along, dim=2)
        return torch.minimum(box, ball)


@dataclass(frozen=True, eq=False)
class ClassMoves(LabelMoves):
    """Flips of class labels: ``q = slope (e_y - e_ỹ)``.

    Args:
        own: class of each sample, (b,).
        reach: classes that a flip can write, boolean (b, K).
        slope: factor of the loss, times the part of a smoothed target that the label decides.
    """

    own: Tensor
    reach: Tensor
    slope: float

    @override
    def support(self, along: Tensor, rows: slice) -> Tensor:
        own = along.gather(2, self.own[rows, None, None].expand(-1, along.shape[1], 1)).squeeze(2)
        least = along.masked_fill(~self.reach[rows, None], torch.inf).amin(dim=2)
        return self.slope * (own - least).clamp(min=0)
