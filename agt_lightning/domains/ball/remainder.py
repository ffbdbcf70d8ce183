"""What the network's own curvature and its kinks add to a step, beside the semidefinite part."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Remainder:
    """Bounds on ``E = rest + M`` with ``⟨δ, M⟩ >= -discord`` for the distance δ of the parameters.

    M counts at second order in the step, but for its discord. There can be several such splittings of one E.

    Args:
        rest: upper bound on ``‖E - M‖``.
        monotone: upper bound on ``‖M‖``.
        discord: units that do not move along with δ: those that rounding alone turns on or off, and jumps against δ.

    Reference:
        docs/theory.md, eq. (10.14) and (10.38); docs/floats.md, eq. (B.8).

    Example:
        >>> (2 * Remainder(rest=0.1, monotone=0.2)).monotone
        0.4
    """

    rest: float = 0.0
    monotone: float = 0.0
    discord: float = 0.0

    def __rmul__(self, factor: float) -> Remainder:
        """Return the bounds times a factor, at least 1."""
        return Remainder(factor * self.rest, factor * self.monotone, factor * self.discord)

    @property
    def is_finite(self) -> bool:
        """Whether these are bounds at all."""
        return math.isfinite(self.rest + self.monotone + self.discord)
