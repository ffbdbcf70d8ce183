"""What a defense against flipped labels certifies, and the file that keeps it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from recipes.runs.flips import COLUMNS, CertifiedFlips

Budget = Literal["each step", "whole data set"]

HEADER = ("defense", "budget", *COLUMNS)


@dataclass(frozen=True)
class Defense:
    """Certified flips of test samples, and what a flip is counted in.

    Args:
        flips: certified flips by test sample; its label is the name of the defense.
        budget: ``"each step"`` if the adversary flips n labels at every step, other ones each time if it likes;
            ``"whole data set"`` if n labels are flipped once and for all. The first adversary can do what the second
            can, and more.
        numbers: which test samples these are, integers ``(samples,)``.
    """

    flips: CertifiedFlips
    budget: Budget
    numbers: Tensor


def save(defenses: Sequence[Defense], path: Path) -> Path:
    """Write a row for each defense and test sample.

    Args:
        defenses: with different names.
        path: the file; missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for defense in defenses:
            columns = (defense.numbers, defense.flips.flips, defense.flips.correct.int())
            rows = zip(*(column.tolist() for column in columns), strict=True)
            writer.writerows((defense.flips.label, defense.budget, *row) for row in rows)
    return path


def load(path: Path) -> list[Defense]:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has other columns.
    """
    with path.open(newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if tuple(header) != HEADER:
            raise ValueError(f"Expected the columns {', '.join(HEADER)} in {path}, but got {', '.join(header)}.")
        return [_read(name, budget, list(rows)) for (name, budget), rows in groupby(reader, lambda row: tuple(row[:2]))]


def _read(name: str, budget: Budget, rows: Sequence[Sequence[str]]) -> Defense:
    numbers, flips, correct = torch.tensor([[int(cell) for cell in row[2:]] for row in rows]).T
    return Defense(CertifiedFlips(name, flips, correct.bool()), budget, numbers)
