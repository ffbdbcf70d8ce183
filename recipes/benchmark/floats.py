"""What floating point costs in width: bounds on runs of hardware over bounds on runs in real arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from recipes.benchmark.report import Row
from recipes.benchmark.step_cost import STEPS_BEFORE, Setting, Training
from recipes.benchmark.workloads import Workload

TYPES = ((torch.float64, torch.float64), (torch.float32, torch.float64), (torch.float32, torch.float32))
"""Types of the run and of the bounds."""


def rows(workloads: list[Workload], setting: Setting) -> Iterator[Row]:
    """Compare mean widths after three steps: runs as hardware executes them over runs in real arithmetic.

    Args:
        workloads: what is trained.
        setting: of the training; types and level are replaced.

    Yields:
        One row for each workload and pair of types.
    """
    for workload in workloads:
        for run, bounds in TYPES:
            typed = replace(setting, training=run, bounds=bounds)
            real, hardware = (width(workload, replace(typed, floats=level)) for level in ("real", "run"))
            types = [str(each).removeprefix("torch.") for each in (run, bounds)]
            print(f"{workload.name}, {' and bounds in '.join(types)}: wider by {hardware / real - 1:.2g}", flush=True)
            yield {
                "workload": workload.name,
                "b": workload.samples,
                "run": types[0],
                "bounds": types[1],
                "mean width, real": real,
                "mean width, run": hardware,
                "wider by": hardware / real - 1,
            }


def width(workload: Workload, setting: Setting) -> float:
    """Return the mean width of the parameters' bounds after three certified steps."""
    training = Training(workload, setting)
    for _ in range(STEPS_BEFORE + 1):
        training.certified_step()
    return training.engine.bounds.mean_width()
