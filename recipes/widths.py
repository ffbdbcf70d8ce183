"""How wide the bounds of each parameter of a trained model are."""

import csv
from pathlib import Path

from recipes.runs.run import Run

FILE = "widths.csv"
COLUMNS = ("parameter", "shape", "mean width", "largest width", "mean magnitude")


def widths(run: Run) -> list[tuple[str, str, float, float, float]]:
    """One row of `COLUMNS` per parameter, in the order of the module; the magnitude is that of the trained parameter.

    Args:
        run: a training with bounds.
    """
    nominal = dict(run.module.named_parameters())
    return [
        (
            name,
            "×".join(map(str, interval.lower.shape)),
            float(interval.width.mean()),
            float(interval.width.max()),
            float(nominal[name].detach().abs().mean()),
        )
        for name, interval in run.model.bounds.items()
    ]


def write_widths(run: Run) -> Path:
    """Write ``widths.csv`` to the folder of the run."""
    path = run.output_dir / FILE
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *widths(run)])
    return path
