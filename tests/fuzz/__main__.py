"""Certify random trainings, poison each in many ways, and report what leaves its bounds; nothing may.

python -m tests.fuzz --seed 0 --minutes 60 --workers 2 --trainings 20
python -m tests.fuzz --seed 1234 --count 1 --verbose        # one training again
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.fuzz.examine import fuzz
from tests.fuzz.report import Report, say


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
    whole = Report()
    with ProcessPoolExecutor(given.workers, multiprocessing.get_context("spawn")) as pool:
        for job in [pool.submit(fuzz, *job) for job in jobs]:
            whole.merge(job.result())
    _print(whole, time.monotonic() - began)
    sys.exit(bool(whole.violations or whole.counts["crashed"] or whole.counts["stopped"]))


def _print(report: Report, seconds: float) -> None:
    for line in report.stopped:
        say(f"not certified: {line}")
    for kind in ("all", "operation", "loss", "optimizer", "adversary", "method", "steps"):
        say(report.table(kind))
    counts = ", ".join(f"{count} {name}" for name, count in sorted(report.counts.items()))
    say(f"{counts}; {len(report.operations)} operations; {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
