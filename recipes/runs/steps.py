"""What was certified after every step of a training, as data for pictures."""

import csv
from collections.abc import Sequence
from pathlib import Path

from recipes.runs.callbacks import MSEOverSteps
from recipes.runs.run import Run

FILE = "steps.csv"


def recorded(run: Run) -> list[dict[str, float]]:
    """What the run's `MSEOverSteps` recorded.

    Raises:
        ValueError: if it has none.
    """
    for callback in run.callbacks:
        if isinstance(callback, MSEOverSteps):
            return callback.history
    raise ValueError("Expected a `MSEOverSteps` among the run's callbacks. Add `callbacks=mse_over_steps`.")


def record_steps(run: Run) -> Path:
    """Write ``steps.csv`` to the folder of a run with a `MSEOverSteps`: one row per step, 0 before the first one."""
    return write_steps(recorded(run), run.output_dir / FILE)


def write_steps(history: Sequence[dict[str, float]], path: Path) -> Path:
    """Write one row per step."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *history[0]])
        writer.writeheader()
        writer.writerows({"step": step, **values} for step, values in enumerate(history))
    return path
