r"""Gather the finished points of a sweep into tidy tables, from which figures are drawn without any training.

``points.csv`` has one row for each point: the panel and level it has in a figure, the adversary, the domains, every
other setting in which the points differ, what was certified, and seconds of training. Tables that each point wrote for
itself, such as ``steps.csv``, become one of the same name, with the point's name in front of each row.

    python -m recipes.gather outputs/household
"""

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.runs.results import FILE, Result

POINTS = "points.csv"
_STRENGTHS = ("adversary.n", "adversary.epsilon", "adversary.nu", "adversary.kappa")
_ALWAYS = (*_STRENGTHS, "callbacks.certified.domains")
_LOGS = ("metrics.csv",)


def gather(folder: Path) -> list[Path]:
    """Write the tables of a sweep.

    Args:
        folder: of the sweep; each point has its own somewhere in it.

    Returns:
        Paths of the tables.

    Raises:
        FileNotFoundError: if no point is finished.
        ValueError: if different versions of the package certified the points.
    """
    results = finished(folder)
    _write([_row(result, _columns(results)) for result in results], folder / POINTS)
    names = sorted({path.name for result in results for path in (folder / result.point).glob("*.csv")} - {*_LOGS})
    for name in names:
        _write(_joined(folder, results, name), folder / name)
    return [folder / POINTS, *(folder / name for name in names)]


def finished(folder: Path) -> list[Result]:
    """Results of all finished points, however deep in ``folder``, in order of their panels, levels and strengths.

    Returns:
        Results whose ``point`` is the path of their folder, relative to that of the sweep.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if different versions of the package made them.
    """
    results = [_placed(path.parent, folder) for path in sorted(folder.rglob(FILE))]
    if not results:
        raise FileNotFoundError(f"Expected finished points of a sweep in {folder.resolve()}, but found none.")
    if len({result.code for result in results}) > 1:
        raise ValueError(
            f"Expected all points in {folder} to be certified by the same version of agt_lightning, but got several. "
            "Run the sweep again, and move away the folders of points that it does not have."
        )
    return sorted(results, key=_order)


def _placed(point: Path, folder: Path) -> Result:
    result = Result.load(point)
    assert result is not None
    return replace(result, point=point.relative_to(folder).as_posix())


def read(folder: Path, name: str = POINTS) -> list[dict[str, str]]:
    """Rows of a table that `gather` wrote, as text.

    Raises:
        FileNotFoundError: if it is not there.
    """
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"Expected {path}. Run `python -m recipes.gather {folder}` after the sweep.")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(folder: Path) -> str:
    """What was certified at each point, in columns."""
    rows = read(folder)
    hidden = {name for name in _ALWAYS if len({row.get(name) for row in rows}) == 1}
    hidden |= {"point", "level"} if "panel" in rows[0] else set()
    return columns([{name: _short(value) for name, value in row.items() if name not in hidden} for row in rows])


def columns(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows under their header, columns aligned to the right.

    Example:
        >>> print(columns([{"n": "5", "accuracy": ".9"}, {"n": "10", "accuracy": ".75"}]))
           n  accuracy
           5        .9
          10       .75
    """
    lines = [list(rows[0]), *([*row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  " + "  ".join(f"{c:>{w}}" for c, w in zip(line, widths, strict=True)) for line in lines)


def _order(result: Result) -> tuple[Any, ...]:
    numbers = [float(result.settings.get(name) or 0.0) for name in _STRENGTHS]
    return (result.panel or "", result.level or 0, *numbers, result.point)


def _columns(results: Sequence[Result]) -> list[str]:
    """Settings worth a column: the adversary's strength, the domains, and those in which points differ."""
    names = dict.fromkeys(name for result in results for name in result.settings)
    values = {name: [_text(result.settings.get(name)) for result in results] for name in names}
    differing = [name for name in names if name in _ALWAYS or len(set(values[name])) > 1]
    copies = {
        name for name in differing for other in differing if _repeats(name, other) and values[name] == values[other]
    }
    return [name for name in differing if name not in copies]


def _repeats(name: str, other: str) -> bool:
    """Whether a setting is one that another part of the configuration refers to, as callbacks do to the adversary."""
    return name.endswith(f".{other}")


def _row(result: Result, settings: Sequence[str]) -> dict[str, Any]:
    placed = {"point": result.point} | ({} if result.panel is None else {"panel": result.panel, "level": result.level})
    chosen = {name: _text(result.settings.get(name)) for name in settings}
    return placed | chosen | dict(result.values) | {"seconds": result.seconds}


def _text(value: Any) -> str:
    """A setting as it is said on a command line; nothing for one that a point does not have."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value).replace("Infinity", "inf")


def _joined(folder: Path, results: Sequence[Result], name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for result in results:
        if (folder / result.point / name).is_file():
            rows += [{"point": result.point, **row} for row in read(folder / result.point, name)]
    return rows


def _write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    names = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(names))
        writer.writeheader()
        writer.writerows(rows)


def _short(value: str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.gather``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the sweep")
    chosen = parser.parse_args(arguments)
    written = gather(chosen.folder)
    print(summary(chosen.folder), "\nWritten:", *written, sep="\n  ")


if __name__ == "__main__":
    main()
