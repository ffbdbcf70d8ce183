"""Bounds on the change of poisoned samples' gradients, as a whole and split for the energy argument."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from torch import Tensor
from typing_extensions import override

from agt_lightning.aggregation.top_n import Choice
from agt_lightning.domains.ball.output_gradient import OutputGradient, PoisonedOutputGradient
from agt_lightning.domains.ball.radius import Push
from agt_lightning.domains.ball.roundoff import GradientRoundoff


@dataclass(frozen=True)
class FeatureEffect(ABC):
    """Bounds on the change of a network when features are perturbed, anywhere in the ball, (m,) each.

    Args:
        output: ``‖Δf‖``.
        jacobian: ``‖ΔJ‖`` for ``J = ∂f/∂θ``.
    """

    output: Tensor
    jacobian: Tensor

    @abstractmethod
    def gradient_change(self, gradient: PoisonedOutputGradient) -> Tensor:
        """Upper bound on ``‖J'ᵀ g' - Jᵀ g‖`` for poisoned J', g' and clean J, g, (m,)."""

    def jumps_apart(
        self, clean: OutputGradient, poisoned: PoisonedOutputGradient, mean_jacobian_error: Tensor
    ) -> JumpsApart | None:
        """Bound the same with jumps apart; None if there is no such bound.

        Args:
            clean: g of the same samples.
            poisoned: bounds on g and g'.
            mean_jacobian_error: ``‖J̃ - J̄‖``, (m,).
        """
        return None


class Jumps(ABC):
    """What units that poisoned features switch add to the sum of gradients, bounded for all samples together."""

    @abstractmethod
    def worst(self, weights: Tensor, n: int) -> float:
        """Upper bound on its norm for the n worst samples.

        Args:
            weights: w_i of the samples in the loss, (m,).
            n: largest number of poisoned samples.
        """


@dataclass(frozen=True)
class JumpsApart:
    """Upper bounds for each poisonable sample, (m,), without jumps, and jumps of all samples together.

    Args:
        whole: on ‖p‖ without jumps.
        rest: on ‖p'‖ without jumps.
        jumps: in p and in p'.
    """

    whole: Tensor
    rest: Tensor
    jumps: Jumps


@dataclass(frozen=True)
class JacobianEffect(FeatureEffect):
    """The effect by norms of the Jacobian alone.

    Args:
        clean_jacobian: ``‖J‖``, (m,).
    """

    clean_jacobian: Tensor

    @override
    def gradient_change(self, gradient: PoisonedOutputGradient) -> Tensor:
        """``J'ᵀ g' - Jᵀ g = Jᵀ (g' - g) + (J' - J)ᵀ g'``: at most ``‖J‖ Q + ‖ΔJ‖ E'``."""
        return gradient.change * self.clean_jacobian + gradient.after * self.jacobian


@dataclass(frozen=True)
class PoisonBounds:
    """Upper bounds for each poisonable sample, (m,), on the change ``p = J̄ᵀ q + p'`` of its gradient.

    Args:
        whole: on ‖p‖.
        energy: on ``qᵀ H̄⁻¹ q``; infinite if there is no bound.
        rest: on ‖p'‖.
        roundoff: of the poisoned sample's own gradient.
        apart: other bounds on ‖p‖ and ‖p'‖; None without these.

    Reference:
        docs/theory.md, eq. (10.15), (10.19), (10.21) and (10.32).
    """

    whole: Tensor
    energy: Tensor
    rest: Tensor
    roundoff: GradientRoundoff
    apart: JumpsApart | None = None

    def worst(self, weights: Tensor, choice: Choice, sum_relative: float) -> WorstPoison:
        """Sum each over the worst samples, ``SEMax_n w_i v_i``, and take the smaller bound where there are two.

        Args:
            weights: w_i of the samples in the loss, (m,).
            choice: the sets of samples that can be poisoned together.
            sum_relative: rounding of the sum over all samples.
        """
        roundoff = self.roundoff
        values = self.whole, self.energy, self.rest, roundoff.with_sum(sum_relative), roundoff.magnitude
        worst = WorstPoison(*(float(choice.largest(weights * each)) for each in values))
        if self.apart is None:
            return worst
        jumps = self.apart.jumps.worst(weights, choice.samples)
        whole, rest = (float(choice.largest(weights * each)) + jumps for each in (self.apart.whole, self.apart.rest))
        return replace(worst, whole=min(worst.whole, whole), rest=min(worst.rest, rest))

    def pushes(self, weights: Tensor, n: int) -> list[Push]:
        """Bound the poison of 0, 1, ..., n samples, as `worst` does for each number.

        Jumps are bounded for the next power of two, which is never less.

        Args:
            weights: w_i of the samples in the loss, (m,).
            n: the largest number, at most m.
        """
        whole, energy, rest = (_running_sums(weights * each, n) for each in (self.whole, self.energy, self.rest))
        if self.apart is not None:
            powers = [1 << k for k in range((n - 1).bit_length() + 1)] if n > 0 else []
            found = {power: self.apart.jumps.worst(weights, min(power, n)) for power in powers}
            jumps = [0.0, *(found[1 << (k - 1).bit_length()] for k in range(1, n + 1))]
            others = (_running_sums(weights * each, n) for each in (self.apart.whole, self.apart.rest))
            whole, rest = (
                [min(one, other + jump) for one, other, jump in zip(bounds, apart, jumps, strict=True)]
                for bounds, apart in zip((whole, rest), others, strict=True)
            )
        return [Push(*each) for each in zip(whole, energy, rest, strict=True)]


def _running_sums(values: Tensor, n: int) -> list[float]:
    """Return the sums of the 0, 1, ..., n largest values; NaN counts as the largest number."""
    largest = values.clamp(min=0).sort(descending=True).values[:n]
    return [0.0, *largest.cumsum(0).tolist()]


@dataclass(frozen=True)
class WorstPoison:
    """Upper bounds on what all poisoned samples add together, as in `PoisonBounds`; by default none.

    Args:
        whole: as there.
        energy: as there.
        rest: as there.
        roundoff: rounding of their gradients, with their share in that of the sum.
        magnitude: size of their gradients.
    """

    whole: float = 0.0
    energy: float = 0.0
    rest: float = 0.0
    roundoff: float = 0.0
    magnitude: float = 0.0
