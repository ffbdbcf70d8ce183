"""A gate for changes of the hot path: certified over plain steps must not rise above what is stored."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.benchmark.report import Row

STORED = Path(__file__).with_name("ratios.csv")
"""Ratios by workload, measured on two cores of x86-64 with little else running."""

ALLOWED = 1.15
"""A measured ratio over the stored one, which noise on an idle machine stays below."""


def stored_ratios(path: Path = STORED) -> dict[str, float]:
    """Return the stored ratios by workload.

    Args:
        path: a table with the columns ``workload`` and ``ratio``.
    """
    with path.open() as file:
        return {row["workload"]: float(row["ratio"]) for row in csv.DictReader(file)}


def above(rows: Sequence[Row], stored: Mapping[str, float]) -> list[str]:
    """Return a sentence for each measured ratio that is too far above the stored one.

    Args:
        rows: as measured, with ``workload`` and ``ratio``.
        stored: by workload; others are not compared.

    Example:
        >>> above([{"workload": "UCI", "ratio": 30.0}], {"UCI": 20.0})
        ['UCI: 30.0 plain steps, 1.50 times the stored 20.0.']
    """
    found = []
    for row in rows:
        name, ratio = str(row["workload"]), float(row["ratio"])
        expected = stored.get(name)
        if expected is not None and ratio > ALLOWED * expected:
            found.append(f"{name}: {ratio:.1f} plain steps, {ratio / expected:.2f} times the stored {expected:.1f}.")
    return found
