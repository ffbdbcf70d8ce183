"""Small made files in the format of UCI's MAGIC data."""

from pathlib import Path

import numpy as np

from recipes.data.magic import FOLDER, MEMBER


def shower_rows(count: int) -> list[str]:
    """Rows in UCI's spelling and order, gamma rays first: ten numbers and a letter, between commas."""
    generator = np.random.default_rng(0)
    gamma = round(0.648 * count)
    values = generator.normal(5, 2, (count, 10)) + np.where(np.arange(count) < gamma, 0, 2)[:, None]
    letters = np.where(np.arange(count) < gamma, "g", "h")
    return [
        ",".join(f"{value:.4f}" for value in row) + f",{letter}" for row, letter in zip(values, letters, strict=True)
    ]


def write_showers(root: Path, rows: list[str]) -> Path:
    path = root / FOLDER / MEMBER
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    return path
