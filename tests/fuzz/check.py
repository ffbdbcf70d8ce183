"""What a poisoned training shows of its bounds: whether it is outside, and how much of the width it attains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning import ParameterBounds
from tests.fuzz.attacks import Target

Parameters = dict[str, Tensor]

Run = Sequence[Parameters]
"""The parameters after each step of a training."""


@dataclass(frozen=True)
class Violation:
    """A parameter outside its bounds.

    Args:
        run: number of the poisoned training.
        step: number of the step after which it was outside, from 0.
        name: of the parameter.
        excess: distance to the bounds.
        width: of the bounds there.
    """

    run: int
    step: int
    name: str
    excess: float
    width: float


def worst_violation(bounds: Sequence[ParameterBounds], runs: Sequence[Run]) -> Violation | None:
    """Return the largest excess of any run over bounds that hold without any tolerance; None if all are inside.

    Args:
        bounds: after each step.
        runs: poisoned trainings, each with its parameters after each step.
    """
    worst = None
    for step, name, lower, upper, values in _by_parameter(bounds, runs):
        beyond = torch.maximum(lower - values, values - upper)
        beyond = torch.where(values.isfinite() & beyond.isfinite(), beyond, torch.inf)  # NaN is outside
        excess, at = float(beyond.max()), int(beyond.argmax())
        if excess > 0 and (worst is None or excess > worst.excess):
            run, index = divmod(at, len(lower))
            worst = Violation(run, step, name, excess, float((upper - lower)[index]))
    return worst


@dataclass(frozen=True)
class Reached:
    """How far an element was led toward one of its bounds.

    Args:
        target: the element, the step, and the way.
        share: of the room from the clean run to the bound that was used.
        run: number of the poisoned training that used it.
    """

    target: Target
    share: float
    run: int


def reached(bounds: Sequence[ParameterBounds], runs: Sequence[Run]) -> list[Reached]:
    """Return how far each element with any room was led, both ways, by the poisoned training that led it furthest.

    Args:
        bounds: after each step.
        runs: the first one is clean.
    """
    found = []
    for step, name, lower, upper, values in _by_parameter(bounds, runs):
        for sign, side in ((1.0, upper), (-1.0, lower)):
            room = sign * (side - values[0])
            shares, at = (sign * (values - values[0]) / room).max(0)
            wide = (room > 1e-6 * (1 + values[0].abs())).nonzero().flatten().tolist()
            found += [Reached(Target(name, i, sign, step), float(shares[i]), int(at[i])) for i in wide]
    return found


def attained_share(bounds: Sequence[ParameterBounds], runs: Sequence[Run], targets: Sequence[Target]) -> float | None:
    """Return the mean share of the room from the clean run to the bound that some run used, for what was attacked.

    It is a lower bound on how tight the bounds are: attacks are no optimum.

    Args:
        bounds: of the training.
        runs: the first one is clean.
        targets: elements that attacks raised or lowered.

    Returns:
        The mean over the targets with any room; None if there are none.
    """
    shares = {each.target: each.share for each in reached(bounds, runs)}
    attained = [shares[target] for target in targets if target in shares]
    return sum(attained) / len(attained) if attained else None


def _by_parameter(
    bounds: Sequence[ParameterBounds], runs: Sequence[Run]
) -> Iterator[tuple[int, str, Tensor, Tensor, Tensor]]:
    """Yield step, name, lower and upper bounds, (e,), and the values of all runs, (r, e), of each parameter."""
    for step, after in enumerate(bounds if runs else ()):
        for name, interval in after.items():
            values = torch.stack([run[step][name].double().flatten() for run in runs])
            yield step, name, interval.lower.double().flatten(), interval.upper.double().flatten(), values
