"""The command line that fuzzers share."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tests.fuzz.report import say

Examine = Callable[[int, "Counter[str]"], Iterable[object]]
"""Examines what one seed draws, counts what became of it, and returns what is wrong."""


@dataclass(frozen=True)
class Given:
    """What a command line says: which seeds, and for how long.

    Args:
        seed: the first one; the others follow.
        minutes: how long to go on.
        number: what else is given, if anything.
    """

    seed: int
    minutes: float
    number: int

    @classmethod
    def parsed(cls, description: str | None, *, minutes: float = 1.0, number: tuple[str, int] | None = None) -> Given:
        """Read the command line.

        Args:
            description: of the command.
            minutes: if it says nothing.
            number: name and default of one more number.
        """
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--seed", type=int, default=0, help="the first one; the others follow")
        parser.add_argument("--minutes", type=float, default=minutes)
        if number is not None:
            parser.add_argument(f"--{number[0]}", type=int, default=number[1], dest="number")
        return cls(**{"number": 0} | vars(parser.parse_args()))

    def seeds(self) -> Iterator[int]:
        """Yield one seed after another until time is over."""
        end = time.monotonic() + 60 * self.minutes
        for seed in itertools.count(self.seed):
            if time.monotonic() >= end:
                return
            yield seed


def fuzz_until_time_is_over(examine: Examine, description: str | None) -> None:
    """Examine one seed after another, print what is wrong and the counts, and exit with 1 if anything was.

    Args:
        examine: of one seed.
        description: of the command.
    """
    given = Given.parsed(description)
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    found = 0
    for seed in given.seeds():
        for violation in examine(seed, counts):
            say(str(violation))
            found += 1
    say(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    sys.exit(found > 0)
