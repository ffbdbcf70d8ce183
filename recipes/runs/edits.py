"""Certified edits of several defenses: the table with a row for each test sample, and what is read off it."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

COLUMNS = ("defense", "test_sample", "certified_edits", "certified_replacements", "correct")
"""An edit is an insertion or a deletion; negative if nothing is certified."""


def rows_of(name: str, numbers: Tensor, edits: Tensor, replacements: Tensor, correct: Tensor) -> pd.DataFrame:
    """Return the rows of one defense.

    Args:
        name: of the defense.
        numbers: of the test samples, integers ``(samples,)``.
        edits: certified insertions and deletions of each, ``(samples,)``.
        replacements: certified replacements, ``(samples,)``.
        correct: whether the prediction is right, ``(samples,)``.
    """
    columns = (numbers, edits, replacements, correct.int())
    values = dict(zip(COLUMNS[1:], (column.cpu().numpy() for column in columns), strict=True))
    return pd.DataFrame({"defense": name, **values})


def certified_accuracy(rows: pd.DataFrame, n: int) -> float:
    """Return the fraction of samples whose prediction is right and withstands n insertions and deletions."""
    return float(((rows["correct"] == 1) & (rows["certified_edits"] >= n)).mean())


def one_half(rows: pd.DataFrame, column: str = "certified_edits") -> int:
    """Return the largest n at which certified accuracy is at least one half; -1 if there is none.

    Args:
        rows: of one defense.
        column: whose n.

    Example:
        >>> rows = pd.DataFrame({"certified_edits": [9, 5, 7, 8], "correct": [1, 1, 1, 0]})
        >>> one_half(rows)
        7
    """
    numbers = rows[column].where(rows["correct"] == 1, -1).sort_values(ascending=False).to_numpy()
    return max(-1, int(numbers[(len(numbers) + 1) // 2 - 1]))


def curve(rows: pd.DataFrame) -> tuple[list[float], list[float]]:
    """Return the corners of certified accuracy over n, which has each value up to and including its n."""
    good = rows["certified_edits"][(rows["correct"] == 1) & (rows["certified_edits"] >= 0)]
    n, counts = np.unique(good.to_numpy(), return_counts=True)
    values = np.concatenate([counts[::-1].cumsum()[::-1], [0]]) / len(rows)
    return [0.0, *map(float, n)], [float(values[0]), *map(float, values[:-1])]


def markdown(rows: pd.DataFrame, at: Sequence[int], published: Mapping[str, Sequence[float]]) -> str:
    """A row for each defense, in the order in which they occur, and for each published one.

    Args:
        rows: of all defenses.
        at: numbers of edits.
        published: accuracy, and edits at which certified accuracy is one half, by name.
    """
    header = ["defense", "test images", "accuracy", "n at one half", "median n", "replacements at one half"]
    header += [f"n = {n}" for n in at]
    lines = [header, ["---"] * len(header)]
    lines += [_line(name, some, at) for name, some in rows.groupby("defense", sort=False)]
    for name, (accuracy, half) in published.items():
        lines.append([f"{name}, published", "10000", f"{accuracy:.3f}", f"{half:g}", *[""] * (2 + len(at))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(name: str, rows: pd.DataFrame, at: Sequence[int]) -> list[str]:
    certified = [f"{certified_accuracy(rows, n):.3f}" for n in at]
    numbers = [str(one_half(rows)), f"{rows['certified_edits'].median():g}"]
    replaced = str(one_half(rows, "certified_replacements"))
    return [name, str(len(rows)), f"{rows['correct'].mean():.4f}", *numbers, replaced, *certified]
