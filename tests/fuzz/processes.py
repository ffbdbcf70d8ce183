"""Certify random trainings in two processes, each with a micro-batch of every step, and poison them as one training.

python -m tests.fuzz.processes --seed 0 --minutes 5
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from tests.distributed.pool import Pool
from tests.fuzz.command import Given
from tests.fuzz.divided import WORLD, divided, examine
from tests.fuzz.report import say
from tests.fuzz.trainings import training


def main() -> None:
    """Run until time is over, and print what became of all trainings; exit with 1 if one was outside or stopped."""
    given = Given.parsed(__doc__, number=("trainings", 20))
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(WORLD, Path(folder))
        for seed in given.seeds():
            if divided(seed):
                outcome = examine(pool, seed, given.number)
                counts[outcome] += 1
                if outcome not in ("inside", "refused"):
                    say(f"seed {seed}: {outcome}\n    {training(seed).summary()}")
        pool.close()
    say(str(dict(counts)))
    sys.exit(bool(counts.keys() - {"inside", "refused"}))


if __name__ == "__main__":
    main()
