"""Panels of a figure of a sweep, and the rows of its table that belong to each."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.figures.canvas import new_figure
from recipes.runs.tables import read

Panels = Mapping[str, Mapping[str, Any]]
Row = dict[str, str]

DOMAINS = "callbacks.certified.domains"


def rows_of_panels(folder: Path, panels: Panels) -> dict[str, list[Row]]:
    """Return the finished points of each panel that has any, by rising level.

    Args:
        folder: of the sweep, with the table of `recipes.runs.tables.gather`.
        panels: of the configuration.

    Raises:
        ValueError: if no point belongs to a panel.
    """
    rows = read(folder)
    found = {name: [row for row in rows if row.get("panel") == name] for name in panels}
    if not any(found.values()):
        raise ValueError(
            f"Expected points of the panels {list(panels)} in {folder}, but got none. Run the sweep first."
        )
    return {name: sorted(own, key=lambda row: int(row["level"])) for name, own in found.items() if own}


def level_name(panel: Mapping[str, Any], row: Row) -> str:
    """Return the setting in which a row differs from others of its panel, as in ``n = 200``."""
    value = panel["levels"][int(row["level"])]
    return f"{panel['symbol']} = {len(value) if isinstance(value, list) and panel.get('count') else _shown(value)}"


def domains_of(row: Row, domains: Mapping[str, str]) -> str:
    """Return the choice of domains of a point, as the table has it.

    Args:
        row: of the point.
        domains: names in the legend by choice of domains.

    Raises:
        ValueError: if the choice has no name.
    """
    if row.get(DOMAINS) not in domains:
        raise ValueError(
            f"Expected `{DOMAINS}` of {row['point']} to be one of {list(domains)}, but got {row.get(DOMAINS)!r}. "
            "Name it in `drawing.domains`."
        )
    return row[DOMAINS]


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def panel_axes(count: int, across: int, size: Sequence[float]) -> tuple[Figure, Iterator[Axes]]:
    """Return a figure with ``count`` axes, row by row.

    Args:
        count: of panels.
        across: panels in a row.
        size: width and height of a panel in inches.
    """
    columns, rows = min(count, across), -(-count // across)
    figure = new_figure(size[0] * columns, size[1] * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, iter(axes[:count])
