"""One step of the radius: from suprema over the ball to the next ball."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agt_lightning.domains.ball.remainder import Remainder

_TRACE_SUFFICES = 0.5
"""Below this α·trace the curvature hardly enters the step, and its matrix norm is not computed."""

_OUTWARD = 1 + 2.0**-46
"""Above the rounding of some thirty sums, products and square roots of numbers that are not negative."""

_UNDERFLOW = 2.0**-300
"""Above what is lost where squares underflow."""


@dataclass(frozen=True)
class Push:
    """Upper bounds on the poison of a number of changed samples, as in `StepConstants`; by default of none.

    Args:
        poison: as there.
        energy: as there.
        rest: as there.
    """

    poison: float = 0.0
    energy: float = 0.0
    rest: float = 0.0


@dataclass(frozen=True)
class StepConstants:
    """Suprema over the current ball, all in units of the gradient of the mean loss.

    With δ the difference of poisoned and nominal parameters, the step is ``δ⁺ = (1-αμ)δ - α(Aδ + E + p)`` where A is
    symmetric and positive semidefinite, E is what the network's own curvature and its kinks add, and p is the poison
    (docs/theory.md, eq. (10.1) and (10.5), where the monotone part M of E is called J).

    Args:
        trace: upper bound on ‖A‖, cheap.
        norm: computes a tighter upper bound on ‖A‖.
        remainders: bounds on E by different splittings, of which the best is taken.
        poison: upper bound on ‖p‖.
        energy: upper bound on ‖ω‖² for a splitting ``p = A^½ ω + p'``; infinite if there is none.
        rest: upper bound on ‖p'‖.
        roundoff: upper bound on the rounding of a run's gradient, and of the nominal one that training is compared
            with.
        gradient: upper bound on the norm of a run's gradient.
        pushes: bounds for 0, 1, ... changed samples, in place of those for all n, where an adversary has n for all
            steps of an epoch; empty if it has n in each step.
    """

    trace: float
    norm: Callable[[], float]
    remainders: Sequence[Remainder]
    poison: float
    energy: float
    rest: float
    roundoff: float = 0.0
    gradient: float = 0.0
    pushes: Sequence[Push] = ()

    def curvature(self, rate: float) -> float:
        """Upper bound on ‖A‖, by as much work as this learning rate makes worthwhile."""
        return self.trace if rate * self.trace <= _TRACE_SUFFICES else min(self.trace, self.norm())


def next_radius(radius: float, constants: StepConstants, rate: float, decay: float) -> float:
    """Radius that contains every poisoned iterate after a step of SGD.

    Args:
        radius: R, in units of the parameters.
        constants: suprema over the ball of this radius.
        rate: learning rate α.
        decay: weight decay μ.

    Returns:
        The radius after the step; infinite if a supremum is not finite.

    Reference:
        docs/theory.md, eq. (10.28).

    Example:
        >>> still = StepConstants(trace=1.0, norm=lambda: 1.0, remainders=(Remainder(),), poison=0.5,
        ...                       energy=math.inf, rest=0.0)
        >>> round(next_radius(1.0, still, rate=0.1, decay=0.0), 9)
        1.05
    """
    needed = (radius, constants.trace, constants.poison, constants.roundoff)
    remainders = [remainder for remainder in constants.remainders if remainder.is_finite]
    if not remainders or not all(map(math.isfinite, needed)):
        return math.inf  # minima and maxima would swallow a NaN
    curvature = constants.curvature(rate)
    kept = 1 - rate * decay
    best = min(_without_roundoff(radius, constants, each, curvature, rate, kept) for each in remainders)
    return (best + rate * constants.roundoff) * _OUTWARD + _UNDERFLOW


def next_radii(radii: Sequence[float], constants: StepConstants, rate: float, decay: float) -> tuple[float, ...]:
    """Radii after a step, by the number k of samples that a run has changed in this epoch, at most.

    A run that has changed k samples after the step, j of them in it, had changed k - j before. Each sample is in one
    step of an epoch.

    Args:
        radii: for k = 0, 1, ..., n before the step, none larger than the ball of the suprema.
        constants: suprema over that ball.
        rate: learning rate α.
        decay: weight decay μ.

    Returns:
        As many; each infinite if a supremum is not finite.

    Reference:
        docs/theory.md, eq. (17.5).

    Example:
        >>> step = StepConstants(trace=0.0, norm=lambda: 0.0, remainders=(Remainder(),), poison=3.0, energy=math.inf,
        ...                      rest=0.0, pushes=(Push(), Push(2.0, math.inf), Push(3.0, math.inf)))
        >>> [round(radius, 9) for radius in next_radii((1.0, 1.5, 1.6), step, rate=1.0, decay=0.0)]
        [1.0, 3.0, 4.0]
    """
    curvature = constants.curvature(rate)
    known = replace(constants, trace=curvature, norm=lambda: curvature)  # a norm is computed once
    if not constants.pushes:
        return tuple(next_radius(radius, known, rate, decay) for radius in radii)
    steps = [replace(known, poison=each.poison, energy=each.energy, rest=each.rest) for each in constants.pushes]
    return tuple(
        max(next_radius(radii[k - j], step, rate, decay) for j, step in enumerate(steps[: k + 1]))
        for k in range(len(radii))
    )


def _without_roundoff(
    radius: float, constants: StepConstants, remainder: Remainder, curvature: float, rate: float, kept: float
) -> float:
    """Bound the step for one splitting of E: the smaller of the plain step and the energy step."""
    differences = 2.0**-50 * (2 - kept + rate * curvature)  # rounding of the next line
    factor = max(abs(kept), abs(kept - rate * curvature)) + differences
    plain = _with_monotone(factor * radius, curvature * radius, remainder, rate, kept)
    best = plain + rate * constants.poison
    strength = rate * curvature / kept * _OUTWARD if kept > 0 else math.inf
    if strength < 2 and math.isfinite(constants.energy) and math.isfinite(constants.rest):
        gained = rate / kept * constants.energy / (2 - strength) * _OUTWARD
        push = curvature * radius + math.sqrt(curvature * constants.energy)
        by_energy = _with_monotone(kept * math.sqrt(radius * radius + gained), push, remainder, rate, kept)
        best = min(best, by_energy + rate * constants.rest)
    return best + rate * remainder.rest


def _with_monotone(size: float, push: float, remainder: Remainder, rate: float, kept: float) -> float:
    """Bound ``‖u - αM‖``, ``u = (1-αμ)δ - αv``, if ``‖u‖ <= size``, ``‖v‖ <= push`` and ``⟨δ, M⟩ >= -discord``."""
    monotone = rate * remainder.monotone
    if kept < 0:
        return size + monotone
    against = 2 * rate * (push * monotone + kept * remainder.discord)
    return min(size + monotone, math.sqrt(size * size + against + monotone * monotone))
