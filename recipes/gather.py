r"""Gather the finished points of a sweep into tidy tables, see `recipes.runs.tables`.

python -m recipes.gather outputs/household
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from recipes.runs.job import one_message
from recipes.runs.tables import gather, summary


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.gather``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the sweep")
    chosen = parser.parse_args(arguments)
    with one_message():
        written = gather(chosen.folder)
        print(summary(chosen.folder), "\nWritten:", *written, sep="\n  ")


if __name__ == "__main__":
    main()
