"""One training after another: certify it, poison it, and compare."""

from __future__ import annotations

import time
import warnings

import torch

from agt_lightning.errors import AgtError, UncertifiableError, UnsoundBoundError
from tests.fuzz.check import attained_share, worst_violation
from tests.fuzz.facts import checked_facts
from tests.fuzz.report import Report, say
from tests.fuzz.runs import poisoned_runs
from tests.fuzz.trainings import training


def fuzz(seed: int, stride: int, count: int, minutes: float, trainings: int, verbose: bool = False) -> Report:  # noqa: FBT001, FBT002
    """Return the report of the trainings of every so many seeds.

    Args:
        seed: the first one.
        stride: from one seed to the next.
        count: of certified trainings at most.
        minutes: after which no other is begun.
        trainings: poisoned ones for each.
        verbose: whether to print what is drawn.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    report, end = Report(), time.monotonic() + 60 * minutes
    for number in range(count):
        if time.monotonic() > end:
            break
        examine(seed + stride * number, trainings, report, verbose=verbose)
    return report


def examine(seed: int, trainings: int, report: Report, *, verbose: bool = False) -> None:
    """Certify and poison the training of one seed, and add what is found to a report."""
    case = training(seed)
    if verbose:
        say(case.summary())
    try:
        with checked_facts():
            bounds, operations = case.certified(), case.operations()
    except Exception as error:  # a crash is a finding as well
        report.counts[_kind(error)] += 1
        report.stopped.append(f"{_kind(error)}: {case.summary()}\n    {type(error).__name__}: {str(error)[:400]}")
        return
    runs, targets = poisoned_runs(case, trainings, bounds)
    report.counts["certified trainings"] += 1
    report.counts["poisoned trainings"] += len(runs)
    violation = worst_violation(bounds, runs)
    if violation is not None:
        report.counts["outside"] += 1
        report.violations.append(f"{violation}\n    {case.summary()}")
        say(report.violations[-1])
    report.add(case, operations, attained_share(bounds, runs, targets))


def _kind(error: Exception) -> str:
    """Return what became of a training that was not certified; only the first two are as they should be."""
    if isinstance(error, UncertifiableError):
        return "refused"
    diverged = isinstance(error, UnsoundBoundError) and "diverged" in str(error)
    return "diverged" if diverged else "stopped" if isinstance(error, AgtError) else "crashed"
