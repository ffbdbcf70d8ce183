r"""Draw the figure of a sweep from its gathered tables; nothing is trained.

python -m recipes.figure outputs/household
python -m recipes.figure outputs/household --output household.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from recipes.runs.drawing import draw
from recipes.runs.job import one_message
from recipes.runs.tables import gather


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.figure``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the sweep")
    parser.add_argument(
        "--output", type=Path, default=None, help="picture to write; figure.png in the folder if left out"
    )
    chosen = parser.parse_args(arguments)
    with one_message():
        gather(chosen.folder)
        print("Written:", draw(chosen.folder, chosen.output), sep="\n  ")


if __name__ == "__main__":
    main()
