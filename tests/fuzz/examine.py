"""One training after another: certify it, poison it, and compare."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

import torch

from agt_lightning import ParameterBounds
from agt_lightning.errors import AgtError, UncertifiableError, UnsoundBoundError
from tests.fuzz.check import attained_share, worst_violation
from tests.fuzz.facts import checked_facts
from tests.fuzz.report import Report, say
from tests.fuzz.runs import poisoned_runs
from tests.fuzz.trainings import Training, training


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
    """Certify and poison the training of one seed, for each of its adversaries, and add what is found to a report."""
    case = training(seed)
    if verbose:
        say(case.summary())
    try:
        with checked_facts():
            certified, operations = case.certified_for_each(), case.operations()
        difference = apart(case, certified)
    except Exception as error:  # a crash is a finding as well
        report.counts[_kind(error)] += 1
        report.stopped.append(f"{_kind(error)}: {case.summary()}\n    {type(error).__name__}: {str(error)[:400]}")
        return
    if case.companions:
        report.counts["trainings with several adversaries"] += 1
    if difference:
        report.note("other bounds than alone", f"{difference}\n    {case.summary()}")
    for alone, bounds in zip(case.alone(), certified, strict=True):
        runs, targets = poisoned_runs(alone, trainings, bounds)
        report.counts["certified trainings"] += 1
        report.counts["poisoned trainings"] += len(runs)
        violation = worst_violation(bounds, runs)
        if violation is not None:
            report.note("outside", f"{violation}\n    {alone.adversary} of {case.summary()}")
        report.add(alone, operations, attained_share(bounds, runs, targets))


def apart(case: Training, certified: Sequence[Sequence[ParameterBounds]]) -> str:
    """Return the adversary whose bounds are others than those of a training with it alone, and where; or nothing.

    Raises:
        AgtError: if a training with one of several adversaries alone is not certified.
    """
    for alone, together in zip(case.alone() if case.companions else (), certified, strict=False):
        for step, (own, found) in enumerate(zip(alone.certified(), together, strict=True)):
            for name, interval in own.items():
                ends = (interval.lower, found[name].lower), (interval.upper, found[name].upper)
                if not all(torch.equal(*pair) for pair in ends):
                    return f"{alone.adversary}: {name} after step {step}"
    return ""


def _kind(error: Exception) -> str:
    """Return what became of a training that was not certified; only the first two are as they should be."""
    if isinstance(error, UncertifiableError):
        return "refused"
    diverged = isinstance(error, UnsoundBoundError) and "diverged" in str(error)
    return "diverged" if diverged else "stopped" if isinstance(error, AgtError) else "crashed"
