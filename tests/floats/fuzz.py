"""Certify random trainings, execute each in many ways, and count what leaves its bounds; zero tolerance.

python -m tests.floats.fuzz --seed 0 --minutes 10 --executions 100
"""

from __future__ import annotations

import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from agt_lightning import AbstractGradientEngine, ParameterBounds
from agt_lightning.errors import AgtError, UncertifiableError
from tests.floats.configurations import Configuration, configuration
from tests.floats.executions import Execution, executed, poisons
from tests.fuzz.command import Given
from tests.fuzz.report import say


@dataclass(frozen=True)
class Violation:
    """A parameter of an execution outside its bounds.

    Args:
        seed: of the configuration.
        execution: number of the execution.
        way: of the execution.
        name: of the parameter.
        excess: distance to the bounds.
        width: of the bounds there.
    """

    seed: int
    execution: int
    way: Execution
    name: str
    excess: float
    width: float


def certified(case: Configuration) -> ParameterBounds:
    """Return the bounds of a certified training."""
    module = case.module()
    engine = AbstractGradientEngine(module, case.loss, case.adversary, **case.engine)
    optimizer = case.optimizer([p for p in module.parameters() if p.requires_grad], **case.settings)
    for batch in case.batches:
        engine.step([batch], optimizer)
    return engine.bounds


def violations(case: Configuration, bounds: ParameterBounds, executions: int) -> Iterator[Violation]:
    """Execute a training in many ways, and yield the worst violation of each that has one."""
    draw = random.Random(case.seed + 1)
    attacks = poisons(case)
    for number in range(executions):
        way = Execution.drawn(draw)
        parameters = executed(case, way, attacks[number % len(attacks)], 1000 * case.seed + number)
        worst = _worst(bounds, parameters)
        if worst is not None:
            yield Violation(case.seed, number, way, *worst)


def _worst(bounds: ParameterBounds, parameters: dict[str, torch.Tensor]) -> tuple[str, float, float] | None:
    found = None
    for name, value in parameters.items():
        lower, upper, exact = bounds[name].lower.double(), bounds[name].upper.double(), value.double()
        beyond = torch.maximum(lower - exact, exact - upper)
        beyond = torch.where(exact.isfinite(), beyond, torch.inf)
        excess = float(beyond.max())
        if excess > 0 and (found is None or excess > found[1]):
            found = name, excess, float((upper - lower).flatten()[beyond.argmax()])
    return found


def main() -> None:
    """Run until time is over, and print what was found; exit with 1 if something was outside."""
    given = Given.parsed(__doc__, number=("executions", 100))
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    for seed in given.seeds():
        case = configuration(seed)
        try:
            bounds = certified(case)
        except (AgtError, ValueError) as error:
            counts["refused" if isinstance(error, UncertifiableError) else "stopped"] += 1
            if not isinstance(error, UncertifiableError):
                say(f"seed {case.seed}: {type(error).__name__}: {str(error)[:300]}")
            continue
        counts["configurations"] += 1
        counts["executions"] += given.number
        for violation in violations(case, bounds, given.number):
            counts["outside"] += 1
            say(f"{violation} {case.engine} {case.optimizer.__name__} {case.dtype} {case.adversary}")
            break
    say(str(dict(counts)))
    sys.exit(counts["outside"] > 0)


if __name__ == "__main__":
    main()
