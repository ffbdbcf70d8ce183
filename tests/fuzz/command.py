"""The command line that fuzzers share."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable

from tests.fuzz.report import say

Examine = Callable[[int, "Counter[str]"], Iterable[object]]
"""Examines what one seed draws, counts what became of it, and returns what is wrong."""


def fuzz_until_time_is_over(examine: Examine, description: str | None) -> None:
    """Examine one seed after another, print what is wrong and the counts, and exit with 1 if anything was.

    Args:
        examine: of one seed.
        description: of the command.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="the first one; the others follow")
    parser.add_argument("--minutes", type=float, default=1.0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    end, seed, found = time.monotonic() + 60 * given.minutes, given.seed, 0
    while time.monotonic() < end:
        for violation in examine(seed, counts):
            say(str(violation))
            found += 1
        seed += 1
    say(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    sys.exit(found > 0)
