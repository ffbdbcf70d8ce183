"""Certify random trainings, poison each in many ways, and report what leaves its bounds; nothing may.

python -m tests.fuzz --seed 0 --minutes 60 --workers 2 --trainings 20
python -m tests.fuzz --seed 1234 --count 1 --verbose        # one training again
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import warnings

import torch

from agt_lightning.errors import AgtError, UncertifiableError
from tests.fuzz.check import attained_share, worst_violation
from tests.fuzz.report import Report
from tests.fuzz.runs import poisoned_runs
from tests.fuzz.trainings import training


def main() -> None:
    """Run until time is over, and print what was found; exit with 1 if something was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first training; the others have the next ones")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--count", type=int, default=10**9, help="of trainings at most, per worker")
    parser.add_argument("--trainings", type=int, default=20, help="poisoned trainings for each certified one")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    jobs = [
        (given.seed + at, given.workers, given.count, given.minutes, given.trainings, given.verbose)
        for at in range(given.workers)
    ]
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        reports = pool.starmap(fuzz, jobs)
    whole = Report()
    for report in reports:
        whole.merge(report)
    _print(whole, time.monotonic() - began)
    sys.exit(bool(whole.violations))


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
        _say(case.summary())
    try:
        bounds, operations = case.certified_with_operations()
    except (AgtError, ValueError) as error:
        refused = isinstance(error, UncertifiableError)
        report.counts["refused" if refused else "stopped"] += 1
        report.stopped.append(f"{case.summary()}\n    {type(error).__name__}: {str(error)[:400]}")
        return
    runs = list(poisoned_runs(case, trainings))
    report.counts["certified trainings"] += 1
    report.counts["poisoned trainings"] += len(runs)
    violation = worst_violation(bounds, runs)
    if violation is not None:
        report.counts["outside"] += 1
        report.violations.append(f"{violation}\n    {case.summary()}")
        _say(report.violations[-1])
    report.add(case, operations, attained_share(bounds, runs))


def _print(report: Report, seconds: float) -> None:
    for line in report.stopped:
        _say(f"not certified: {line}")
    for kind in ("all", "operation", "loss", "optimizer", "adversary", "method", "steps"):
        _say(report.table(kind))
    counts = ", ".join(f"{count} {name}" for name, count in sorted(report.counts.items()))
    _say(f"{counts}; {len(report.operations)} operations; {seconds / 60:.1f} minutes")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
