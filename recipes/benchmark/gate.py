"""A gate for changes of the hot path: certified over plain steps must not rise above what is stored."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.benchmark.report import Row

STORED = Path(__file__).with_name("ratios.csv")
"""Ratios by workload and aggregation, measured on two cores of x86-64 with little else running."""

ALLOWED = 1.15
"""A measured ratio over the stored one, which noise on an idle machine stays below."""


def stored_ratios(path: Path = STORED) -> dict[tuple[str, str], float]:
    """Return the stored ratios by workload and aggregation.

    Args:
        path: a table with the columns ``workload``, ``aggregation`` and ``ratio``.
    """
    with path.open() as file:
        return {(row["workload"], row["aggregation"]): float(row["ratio"]) for row in csv.DictReader(file)}


def above(rows: Sequence[Row], stored: Mapping[tuple[str, str], float]) -> list[str]:
    """Return a sentence for each measured ratio that is too far above the stored one.

    Args:
        rows: as measured, with ``workload``, ``aggregation`` and ``ratio``.
        stored: by workload and aggregation; others are not compared.

    Example:
        >>> above([{"workload": "UCI", "aggregation": "exact", "ratio": 30.0}], {("UCI", "exact"): 20.0})
        ['UCI, exact: 30.0 plain steps, 1.50 times the stored 20.0.']
    """
    found = []
    for row in rows:
        name, way, ratio = str(row["workload"]), str(row["aggregation"]), float(row["ratio"])
        expected = stored.get((name, way))
        if expected is not None and ratio > ALLOWED * expected:
            found.append(
                f"{name}, {way}: {ratio:.1f} plain steps, {ratio / expected:.2f} times the stored {expected:.1f}."
            )
    return found
