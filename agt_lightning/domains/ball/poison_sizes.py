"""How far the gradients of single poisoned samples can move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from agt_lightning.aggregation.top_n import top_n_sum
from agt_lightning.domains.ball.samples import Poison


@dataclass(frozen=True)
class PoisonSizes:
    """Per poisonable sample, (m,): how far its gradient can move, as a whole and split for the energy argument.

    Args:
        plain: upper bound on ‖p_i‖.
        energy: upper bound on ``qᵀ H⁻¹ q`` for the part ``J̄ᵀ q`` of p_i; infinite if it has none.
        rest: upper bound on the other part.
    """

    plain: Tensor
    energy: Tensor
    rest: Tensor

    def worst(self, weights: Tensor, n: int) -> tuple[float, float, float]:
        """Sums of each over the n worst samples, weighted.

        Args:
            weights: of the samples in the loss, (m,).
            n: largest number of poisoned samples.
        """
        plain, energy, rest = (
            float(top_n_sum((weights * size)[None], n)) for size in (self.plain, self.energy, self.rest)
        )
        return plain, energy, rest


def poison_sums(
    poison: Poison | None, weights: Tensor, sizes: Callable[[Poison, Tensor | None], PoisonSizes]
) -> tuple[float, float, float]:
    """Each of `PoisonSizes`, summed over the worst samples; zero without poison.

    Args:
        poison: what the adversary can do; None if nothing.
        weights: of all samples in the loss, (b,).
        sizes: for poison at given rows; None stands for all samples in order, whose reach is known already.
    """
    if poison is None:
        return 0.0, 0.0, 0.0
    if poison.reaches_all(len(weights)):
        return sizes(poison, None).worst(weights, poison.n)
    return sizes(poison, poison.rows).worst(weights[poison.rows], poison.n)
