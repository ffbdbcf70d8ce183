"""Certify random trainings in two processes, each with a micro-batch of every step, and poison them as one training.

python -m tests.fuzz.processes --seed 0 --minutes 5
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from tests.distributed.pool import Pool
from tests.fuzz.divided import WORLD, divided, examine
from tests.fuzz.report import say
from tests.fuzz.trainings import training


def main() -> None:
    """Run until time is over, and print what became of all trainings; exit with 1 if one was outside or stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--trainings", type=int, default=20)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    end, seed = time.monotonic() + 60 * given.minutes, given.seed
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(WORLD, Path(folder))
        while time.monotonic() < end:
            if divided(seed):
                outcome = examine(pool, seed, given.trainings)
                counts[outcome] += 1
                if outcome not in ("inside", "refused"):
                    say(f"seed {seed}: {outcome}\n    {training(seed).summary()}")
            seed += 1
        pool.close()
    say(str(dict(counts)))
    sys.exit(bool(counts.keys() - {"inside", "refused"}))


if __name__ == "__main__":
    main()
