"""Tidy tables of the finished points of a sweep, from which figures are drawn without any training.

``points.csv`` has one row for each point: the panel and level it has in a figure, the adversary, the domains, every
other setting in which the points differ, what was certified, and seconds of training. Tables that each point wrote for
itself, such as ``steps.csv``, become one of the same name, with the point's name in front of each row.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

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
    columns = _columns(results)
    tables = {POINTS: pd.DataFrame([_row(result, columns) for result in results], dtype=object)}
    names = sorted({path.name for result in results for path in (folder / result.point).glob("*.csv")} - {*_LOGS})
    tables |= {name: _joined(folder, results, name) for name in names}
    for name, table in tables.items():
        table.to_csv(folder / name, index=False)
    return [folder / name for name in tables]


def finished(folder: Path) -> list[Result]:
    """Return the results of all finished points, however deep in ``folder``, by panel, level and strength.

    Returns:
        Results whose ``point`` is the path of their folder, relative to that of the sweep. A point that was trained
        both alone and together with others is there once.

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
    return sorted({(each.fingerprint, each.panel, each.level): each for each in results}.values(), key=_order)


def read(folder: Path, name: str = POINTS) -> list[dict[str, str]]:
    """Return the rows of a table that `gather` wrote, as text.

    Raises:
        FileNotFoundError: if it is not there.
    """
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"Expected {path}. Run `python -m recipes.gather {folder}` after the sweep.")
    return text_table(path).to_dict("records")


def summary(folder: Path) -> str:
    """Return what was certified at each point, in columns."""
    table = text_table(folder / POINTS)
    hidden = [name for name in _ALWAYS if name in table and table[name].nunique() == 1]
    hidden += ["point", "level"] if "panel" in table else []
    return table.drop(columns=hidden).map(_short).to_string(index=False)


def text_table(path: Path) -> pd.DataFrame:
    """Return a table whose cells are as they are written."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _placed(point: Path, folder: Path) -> Result:
    result = Result.load(point)
    assert result is not None
    return replace(result, point=point.relative_to(folder).as_posix())


def _order(result: Result) -> tuple[Any, ...]:
    numbers = [float(result.settings.get(name) or 0.0) for name in _STRENGTHS]
    return (result.panel or "", result.level or 0, *numbers, result.point)


def _columns(results: Sequence[Result]) -> list[str]:
    """Return the settings worth a column: the adversary's strength, the domains, and those in which points differ."""
    names = dict.fromkeys(name for result in results for name in result.settings)
    values = {name: [_text(result.settings.get(name)) for result in results] for name in names}
    differing = [name for name in names if name in _ALWAYS or len(set(values[name])) > 1]
    copies = {
        name for name in differing for other in differing if _repeats(name, other) and values[name] == values[other]
    }
    return [name for name in differing if name not in copies]


def _repeats(name: str, other: str) -> bool:
    """Return whether another part of the configuration refers to this setting, as callbacks do to the adversary."""
    return name.endswith(f".{other}")


def _row(result: Result, settings: Sequence[str]) -> Mapping[str, Any]:
    placed = {"point": result.point} | ({} if result.panel is None else {"panel": result.panel, "level": result.level})
    chosen = {name: _text(result.settings.get(name)) for name in settings}
    return placed | chosen | dict(result.values) | {"seconds": result.seconds}


def _text(value: Any) -> str:
    """Return a setting as it is written on a command line; nothing if the point does not have it."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value).replace("Infinity", "inf")


def _joined(folder: Path, results: Sequence[Result], name: str) -> pd.DataFrame:
    paths = {result.point: folder / result.point / name for result in results}
    tables = {point: text_table(path) for point, path in paths.items() if path.is_file()}
    return pd.concat(tables, names=["point", None]).reset_index(level="point").reset_index(drop=True)


def _short(value: str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value
