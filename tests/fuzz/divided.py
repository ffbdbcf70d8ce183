"""A random training that is divided among processes, and poisoned as one."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from agt_lightning import ParameterBounds
from agt_lightning.distributed import TorchProcessGroup
from agt_lightning.interval import Interval
from tests.distributed.pool import FailedError, Pool
from tests.fuzz.check import worst_violation
from tests.fuzz.runs import poisoned_runs
from tests.fuzz.trainings import training

WORLD = 2
"""Number of processes, and of micro-batches of a step."""


Ends = list[dict[str, tuple[Tensor, Tensor]]]
"""The bounds after each step, by parameter."""


def bounds_of_part(seed: int) -> Ends:
    """Return the bounds of a training of which this process has one micro-batch of each step."""
    warnings.simplefilter("ignore")
    case, group = training(seed), TorchProcessGroup(torch.device("cpu"))
    bounds = case.certified_on([[batches[group.rank]] for batches in case.steps], processes=group)
    return [{name: (interval.lower, interval.upper) for name, interval in after.items()} for after in bounds]


def divided(seed: int) -> bool:
    """Return whether a training has a micro-batch for each process."""
    return len(training(seed).steps[0]) == WORLD


def examine(pool: Pool, seed: int, trainings: int) -> str:
    """Return what became of the training of a seed.

    Args:
        pool: of processes.
        seed: of a training that can be divided.
        trainings: poisoned ones.
    """
    try:
        bounds, *others = pool.run(WORLD, bounds_of_part, seed)
    except FailedError as error:
        kinds = {kind for kind, _ in (each for each in error.errors if each is not None)}
        return "refused" if kinds == {"UncertifiableError"} else f"stopped: {sorted(kinds)}"
    if any(not _same(bounds, other) for other in others):
        return "outside: processes have other bounds"
    after = [
        ParameterBounds({name: Interval.checked(*ends) for name, ends in step.items()}, "", "run") for step in bounds
    ]
    violation = worst_violation(after, poisoned_runs(training(seed), trainings, after)[0])
    return "inside" if violation is None else f"outside: {violation}"


def _same(bounds: Ends, other: Ends) -> bool:
    return all(
        torch.equal(ours, theirs)
        for step, again in zip(bounds, other, strict=True)
        for name in step
        for ours, theirs in zip(step[name], again[name], strict=True)
    )
