"""The certificates of a defense against flipped labels, and the file that keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from recipes.runs.flips import COLUMNS, CertifiedFlips

Budget = Literal["each step", "whole data set"]

HEADER = ("defense", "budget", *COLUMNS)


@dataclass(frozen=True)
class Defense:
    """Certified flips of test samples by a defense, and the budget that they are counted in.

    Args:
        flips: certified flips by test sample; its label is the name of the defense.
        budget: ``"each step"`` if the adversary flips n labels at every step, other ones each time if it likes;
            ``"whole data set"`` if n labels are flipped once and for all. The first adversary can do what the second
            can, and more.
        numbers: of the test samples, integers ``(samples,)``.
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
    pd.concat([_table(defense) for defense in defenses]).to_csv(path, index=False)
    return path


def _table(defense: Defense) -> pd.DataFrame:
    columns = (defense.numbers, defense.flips.flips, defense.flips.correct.int())
    samples = dict(zip(COLUMNS, map(Tensor.numpy, columns), strict=True))
    return pd.DataFrame({"defense": defense.flips.label, "budget": defense.budget, **samples})


def load(path: Path) -> list[Defense]:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has other columns.
    """
    table = pd.read_csv(path)
    if tuple(table.columns) != HEADER:
        raise ValueError(f"Expected the columns {', '.join(HEADER)} in {path}, but got {', '.join(table.columns)}.")
    groups = table.groupby(["defense", "budget"], sort=False)
    return [_read(name, budget, rows) for (name, budget), rows in groups]


def _read(name: str, budget: Budget, rows: pd.DataFrame) -> Defense:
    numbers, flips, correct = (torch.tensor(rows[column].to_numpy()) for column in COLUMNS)
    return Defense(CertifiedFlips(name, flips, correct.bool()), budget, numbers)
