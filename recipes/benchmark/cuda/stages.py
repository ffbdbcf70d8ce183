"""The stages of a visit to a GPU, the time that each may take, and where their rows go."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from recipes.benchmark.cuda import gpu_tests, machine, steps, sums
from recipes.benchmark.cuda.request import Request, Write
from recipes.benchmark.report import Row


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        seconds: after which it is stopped on a GPU.
        measure: does it, and writes rows as they are found.
    """

    seconds: float
    measure: Callable[[Request, Write], None]


STAGES: Mapping[str, Stage] = {
    "machine": Stage(30, machine.measure),
    "steps": Stage(70, steps.measure_usual),
    "sums": Stage(60, sums.measure),
    "triton_steps": Stage(50, steps.measure_triton),
    "tests": Stage(100, gpu_tests.measure),
    "ball": Stage(30, steps.measure_ball),
}
"""In the order of what would be missed most; their limits add up to less than six minutes."""


def write_rows(name: str, request: Request, path: Path) -> None:
    """Run a stage in this process, and append each row to a file as soon as it is found.

    Args:
        name: of the stage.
        request: what is measured.
        path: of lines of JSON.
    """
    with path.open("a") as file:

        def write(row: Row) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        STAGES[name].measure(request, write)
