"""What a poisoned training shows of its bounds: whether it is outside, and how much of the width it attains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning import ParameterBounds

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
            beyond = torch.where(exact.flatten().isfinite(), beyond, torch.inf)
            excess, at = float(beyond.max()), int(beyond.argmax())
            if excess > 0 and (worst is None or excess > worst.excess):
                worst = Violation(number, name, excess, float((upper - lower).flatten()[at]))
    return worst


def attained_share(bounds: ParameterBounds, runs: Sequence[Parameters]) -> float | None:
    """Return the mean share of the room on both sides of the clean run that some run used; None without any room.

    Args:
        bounds: of the training.
        runs: the first one is clean.
    """
    shares = []
    for name, clean in runs[0].items():
        start, values = clean.double(), torch.stack([run[name].double() for run in runs])
        for room, used in (
            (bounds[name].upper.double() - start, values.amax(0) - start),
            (start - bounds[name].lower.double(), start - values.amin(0)),
        ):
            wide = room > 1e-6 * (1 + start.abs())
            shares.append((used[wide] / room[wide]).flatten())
    together = torch.cat(shares)
    return float(together.mean()) if len(together) else None
