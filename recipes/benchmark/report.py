"""Tables of measured costs, as CSV and as markdown."""

import csv
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

Row = dict[str, str | float]


def machine(device: str) -> str:
    """Return the device, the threads and the version of torch that costs are measured with."""
    where = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores of {_processor()}"
    return f"{where}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def write(rows: Sequence[Row], path: Path, caption: str) -> list[Path]:
    """Write rows as ``.csv`` and ``.md``.

    Args:
        rows: with the same keys.
        path: without an ending.
        caption: a sentence under the markdown table.

    Returns:
        Paths of the files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".csv"), path.with_suffix(".md")]
    with files[0].open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    files[1].write_text(f"{markdown(rows)}\n\n{caption}\n")
    return files


def markdown(rows: Sequence[Row]) -> str:
    """Return a table with three significant digits.

    Example:
        >>> print(markdown([{"step": "plain", "ms": 1.2345}]))
        | step | ms |
        |---|---|
        | plain | 1.23 |
    """
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    first, *others = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([first, f"|{'---|' * len(rows[0])}", *others])


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3g}" if value < 1e3 else f"{value:.0f}"


def _processor() -> str:
    return platform.machine() or "an unknown processor"
