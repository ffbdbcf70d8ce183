"""What a poisoned training shows of its bounds: whether it is outside, and how much of the width it attains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning import ParameterBounds
from tests.fuzz.attacks import Target

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Violation:
    """A parameter outside its bounds.

    Args:
        run: number of the poisoned training.
        name: of the parameter.
        excess: distance to the bounds.
        width: of the bounds there.
    """

    run: int
    name: str
    excess: float
    width: float


def worst_violation(bounds: ParameterBounds, runs: Sequence[Parameters]) -> Violation | None:
    """Return the largest excess of any run over bounds that hold without any tolerance; None if all are inside."""
    worst = None
    for number, parameters in enumerate(runs):
        for name, value in parameters.items():
            lower, upper, exact = bounds[name].lower.double(), bounds[name].upper.double(), value.double()
            beyond = torch.maximum(lower - exact, exact - upper).flatten()
            beyond = torch.where(exact.flatten().isfinite() & beyond.isfinite(), beyond, torch.inf)  # NaN is outside
            excess, at = float(beyond.max()), int(beyond.argmax())
            if excess > 0 and (worst is None or excess > worst.excess):
                worst = Violation(number, name, excess, float((upper - lower).flatten()[at]))
    return worst


def attained_share(bounds: ParameterBounds, runs: Sequence[Parameters], targets: Sequence[Target]) -> float | None:
    """Return the mean share of the room from the clean run to the bound that some run used, for what was attacked.

    It is a lower bound on how tight the bounds are: attacks are no optimum.

    Args:
        bounds: of the training.
        runs: the first one is clean.
        targets: elements that attacks raised or lowered.

    Returns:
        The mean over the targets with any room; None if there are none.
    """
    shares = []
    for target in targets:
        values = [float(run[target.name].flatten()[target.index]) for run in runs]
        side = bounds[target.name].upper if target.sign > 0 else bounds[target.name].lower
        room = target.sign * (float(side.flatten()[target.index]) - values[0])
        if room > 1e-6 * (1 + abs(values[0])):
            shares.append(max(target.sign * (value - values[0]) for value in values) / room)
    return sum(shares) / len(shares) if shares else None
