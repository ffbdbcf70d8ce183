"""Units of one layer that can switch between two evaluations of a network, as many as their movement can pay."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.domains.ball.kinks import knapsack
from agt_lightning.domains.ball.pairs import Pairs


@dataclass(frozen=True)
class Switching:
    """Pairs of a sample and a unit whose slope is not sure to be the same in both evaluations.

    For each sample the units that switch have ``Σ_j distance_ij² <= budget_i``.

    Args:
        pairs: the candidates.
        distance: least movement of the unit's preactivation that switches it, (m,).
        budget: squared movement of all preactivations of the layer, (b,).
    """

    pairs: Pairs
    distance: Tensor
    budget: Tensor

    @cached_property
    def any(self) -> Tensor:
        """Whether a sample has a candidate, as 0 or 1, (b,)."""
        return torch.zeros_like(self.budget).index_fill_(0, self.pairs.sample, 1.0)

    def times(self, factor: float) -> Switching:
        """With a larger budget."""
        return Switching(self.pairs, self.distance, factor * self.budget)

    def most(self, values: Tensor) -> Tensor:
        """Upper bound on the sum of ``values``, (m,), over the units that switch, (b,)."""
        return knapsack(self.pairs, values, self.distance.square(), self.budget)

    def signal(self, before: Tensor) -> Tensor:
        """Frobenius norm of a signal's columns at the units that switch, (b,).

        Args:
            before: the signal, (b, q, h).
        """
        return self.most(before[self.pairs.sample, :, self.pairs.unit].square().sum(dim=1)).sqrt()

    def sent_back(self, before: Tensor, weight: Tensor, norm: float) -> Tensor:
        """Norm of the same columns times the rows of the weight in front of these units, (b,).

        Args:
            before: the signal, (b, q, h).
            weight: of the layer whose results these units are, (h, k).
            norm: its norm.
        """
        columns = before[self.pairs.sample, :, self.pairs.unit].norm(dim=1)
        one_by_one = self.most(columns * weight.norm(dim=1)[self.pairs.unit])
        return torch.minimum(norm * self.signal(before), one_by_one)

    def only(self, values: Tensor) -> Tensor:
        """``values``, (b, h), at the candidates, and zero elsewhere."""
        pairs = self.pairs
        return torch.zeros_like(values).index_put((pairs.sample, pairs.unit), pairs.of(values))

    def weight(self, weight: Tensor, norm: float) -> Tensor:
        """``‖W U‖`` on the units U that switch, (b,).

        Args:
            weight: of the next layer, (o, h).
            norm: ‖W‖.
        """
        return self.most(weight.square().sum(dim=0)[self.pairs.unit]).sqrt().clamp(max=norm)
