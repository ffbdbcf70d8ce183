"""Hidden units that poisoned features switch, as many as the movement of the preactivations can pay."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from agt_lightning.domains.ball.one_hidden.activation_scan import UnstablePreactivations
from agt_lightning.domains.ball.one_hidden.bounds import OneHiddenBounds
from agt_lightning.domains.ball.unstable import UnstableBetween


@dataclass(frozen=True)
class SwitchingUnits:
    """Units that can have different signs with clean and with poisoned features, at the same parameters of the ball.

    A unit that switches is nearer to zero than its preactivation moves, and together these move by no more than
    ``change``: ``Σ_T h_j² <= change²``.

    Args:
        units: the candidates, with their preactivations.
        between: the same, with what they cost and what each sample can pay.

    Reference:
        docs/theory.md, eq. (10.17).
    """

    units: UnstablePreactivations
    between: UnstableBetween

    @classmethod
    def within(cls, bounds: OneHiddenBounds, units: UnstablePreactivations, change: Tensor) -> SwitchingUnits:
        """Return them for a limit on the Euclidean norm of the preactivations' movement, (m,)."""
        budget = change.square() * (1 + bounds.ball.arithmetic.own_relative(bounds.roundings))
        return cls(units, UnstableBetween(units, bounds.distance_to_zero(units), budget))

    def sorted_by_unit(self) -> SwitchingUnits:
        """Return the same pairs by unit."""
        order = self.units.order_by_unit()
        units = self.units.taken(order)
        return SwitchingUnits(units, replace(self.between, pairs=units, distance=self.between.distance[order]))
