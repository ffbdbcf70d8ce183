"""Stages as processes with a limit of time, whose rows are kept whatever becomes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from recipes.benchmark.report import Row

_LAST = 600
"""Characters of a failed process's messages that are kept."""


@dataclass(frozen=True)
class Outcome:
    """What became of a stage.

    Args:
        stage: its name.
        seconds: that it took.
        ending: "done", or why it ended early.
        rows: what it found.
    """

    stage: str
    seconds: float
    ending: str
    rows: list[Row]

    @property
    def failed(self) -> bool:
        """Whether the stage, a test or a row of it failed."""
        return self.ending != "done" or any(row.get("outcome") == "failed" or "error" in row for row in self.rows)

    @property
    def sentence(self) -> str:
        """Its ending, with the number of rows and seconds."""
        return f"{self.ending}; {len(self.rows)} rows in {self.seconds:.0f} s."


def run(stage: str, command: Sequence[str], limit: float, rows: Path, environment: Mapping[str, str]) -> Outcome:
    """Run a stage in another process, and stop it and its children after a time.

    Args:
        stage: its name.
        command: to which the path of the rows is added; it writes each as one line of JSON.
        limit: seconds.
        rows: overwritten.
        environment: variables beside those of this process.
    """
    rows.unlink(missing_ok=True)
    start = perf_counter()
    process = subprocess.Popen(
        [*command, str(rows)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )
    try:
        said, _ = process.communicate(timeout=limit)
        ending = "done" if process.returncode == 0 else f"failed: {said[-_LAST:].strip()}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        ending = f"stopped after {limit:.0f} s"
    return Outcome(stage, perf_counter() - start, ending, read(rows))


def read(path: Path) -> list[Row]:
    """Read rows, one line each; a line that was not finished is left out."""
    found: list[Row] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
