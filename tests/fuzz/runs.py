"""Poisoned trainings for real: torch's own optimizer and kernels, in the parameters' type."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agt_lightning import ParameterBounds, UnboundedAdversary
from tests.fuzz.attacks import Attacker, Steps, Target
from tests.fuzz.check import Parameters, Run, reached
from tests.fuzz.substitution import Substitution
from tests.fuzz.trainings import Training, snapshot


class Poison(Protocol):
    """A source of what an adversary does to a training.

    Attributes:
        targets: what it has raised or lowered.
    """

    targets: list[Target]

    def poisoned(self, count: int) -> Iterator[Any]:
        """Yield what to do in so many trainings; in the first one, nothing."""

    def led_on(self, target: Target, done: Any) -> Any:
        """Return what leads a target no less far than what was done."""

    def trained(self, done: Any) -> Run:
        """Return the parameters after each step of the training."""


class _Data(Attacker):
    """Poisoned data, with a training on them."""

    def trained(self, done: Steps) -> Run:
        return trained(self.case, done)


@dataclass(frozen=True)
class Poisoning:
    """Poisoned trainings of one training.

    Args:
        poison: source of what was done.
        done: what was done in each.
        runs: the parameters after each step of each; the first one is clean.
    """

    poison: Poison
    done: tuple[Any, ...]
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, case: Training, count: int) -> Poisoning:
        """Return so many poisoned trainings, which do not know of bounds."""
        draw = random.Random(case.seed + 1)
        unbounded = isinstance(case.adversary, UnboundedAdversary)
        poison: Poison = Substitution(case, draw) if unbounded else _Data(case, draw)
        done = tuple(poison.poisoned(count))
        return cls(poison, done, tuple(map(poison.trained, done)))

    def toward(self, bounds: Sequence[ParameterBounds], count: int) -> Poisoning:
        """Return at most so many more, until one is outside: each leads on the run that came closest to some bound.

        Parameters, steps, and ways take turns.

        Args:
            bounds: after each step.
            count: of further trainings.
        """
        done, runs, turns = list(self.done), list(self.runs), Counter[tuple[str, float, int]]()
        for _ in range(count):
            found = reached(bounds, runs)
            near = [each for each in found if each.share < _ATTAINED]
            if not near or max(each.share for each in found) > _OUTSIDE:
                break
            closest = min(near, key=lambda each: (turns[_kind(each.target)], -each.share))
            turns[_kind(closest.target)] += 1
            done.append(self.poison.led_on(closest.target, done[closest.run]))
            runs.append(self.poison.trained(done[-1]))
        return Poisoning(self.poison, tuple(done), tuple(runs))


_ATTAINED, _OUTSIDE = 0.999, 1.001
"""Shares of the room to a bound: there is no more to gain behind the first, and nothing to seek behind the second."""


def _kind(target: Target) -> tuple[str, float, int]:
    return target.name, target.sign, target.step


def poisoned_runs(
    case: Training, count: int, bounds: Sequence[ParameterBounds] = ()
) -> tuple[Sequence[Run], list[Target]]:
    """Return so many poisoned trainings, and what they raised or lowered; the first one is clean.

    Args:
        case: the training.
        count: of trainings.
        bounds: after each step, which half of the trainings aim at.
    """
    poisoning = Poisoning.of(case, (count + 1) // 2 if bounds else count)
    targets = list(poisoning.poison.targets)
    return poisoning.toward(bounds, count // 2).runs, targets


def trained(case: Training, steps: Steps) -> Run:
    """Return the parameters after each step of a training on some data."""
    module, run = case.module(), list[Parameters]()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = case.optimizer(parameters, **case.settings)
    for number, batches in enumerate(steps):
        case.prepare(module, optimizer, number)
        optimizer.zero_grad()
        for batch in batches:
            (case.loss(module, batch) / len(batches)).backward()
        case.clip(optimizer)
        optimizer.step()
        run.append(snapshot(module))
    return run
