"""One file of numbers and one of tables for the documentation, from what the stages have found so far."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from recipes.benchmark.cuda.processes import Outcome
from recipes.benchmark.cuda.request import Request
from recipes.benchmark.report import Row, markdown


def write_results(outcomes: Sequence[Outcome], request: Request, folder: Path) -> list[Path]:
    """Write ``cuda.json`` and ``cuda.md``, and return their paths.

    Args:
        outcomes: of the stages that have ended.
        request: what was measured.
        folder: exists.
    """
    paths = [folder / "cuda.json", folder / "cuda.md"]
    found = {"request": asdict(request), "stages": [asdict(outcome) for outcome in outcomes]}
    paths[0].write_text(json.dumps(found, indent=1) + "\n")
    parts = [_summary(outcomes, request), *(_section(outcome) for outcome in outcomes)]
    paths[1].write_text("\n\n".join(part for part in parts if part) + "\n")
    return paths


def _summary(outcomes: Sequence[Outcome], request: Request) -> str:
    """Return a sentence on where and how all this was measured."""
    machines = [row for outcome in outcomes if outcome.stage == "machine" for row in outcome.rows]
    where = ", ".join(f"{key} {value}" for key, value in machines[0].items()) if machines else "unknown machine"
    share = "" if request.scale == 1 else f"; {request.scale:g} of the samples"
    clock = "times between events of CUDA" if request.device == "cuda" else "CPU time"
    return f"*{where.removeprefix('card ')}; {clock}, medians of {request.repeats} after warm-up{share}.*"


def _section(outcome: Outcome) -> str:
    """Return the tables of one stage, with what failed."""
    title = f"### {outcome.stage.replace('_', ' ').capitalize()}\n\n{outcome.sentence}"
    if outcome.stage == "machine":
        return title if outcome.ending != "done" else ""
    if outcome.stage == "tests":
        return "\n\n".join([title, *_tests(outcome.rows)])
    measured, failed = ([row for row in outcome.rows if ("error" in row) is wrong] for wrong in (False, True))
    tables = [markdown(measured)] if measured else []
    return "\n\n".join([title, *tables, *(f"- {_words(row)}" for row in failed)])


def _tests(rows: Sequence[Row]) -> list[str]:
    counts = Counter(row["outcome"] for row in rows)
    failed = [
        f"- {row['test']}: {' '.join(str(row.get('reason', '')).split())}" for row in rows if row["outcome"] == "failed"
    ]
    return [", ".join(f"{count} {name}" for name, count in counts.items()), *failed]


def _words(row: Row) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.items())
