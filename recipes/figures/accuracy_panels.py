"""Certified accuracy of scans against the number of poisoned ones, several curves in each panel (figure 4)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from recipes.data.medmnist import title
from recipes.figures.canvas import BLUE, GREEN, PURPLE, VERMILION, heading, plain, save
from recipes.figures.panels import Panels, Row, domains_of, panel_axes, rows_of_panels

ORIGINAL = "octmnist"
_COLORS = (BLUE, VERMILION, GREEN, PURPLE)
_STYLES = ("-", "--", "-.")
_SIZE = (4.0, 3.5)
_MARGIN = 0.05


def draw_accuracy_panels(folder: Path, panels: Panels, path: Path, dataset: str, domains: Mapping[str, str]) -> Path:
    """Draw curves that share a title into one panel: a color for each, a style of line for each choice of domains.

    Args:
        folder: of the sweep, gathered.
        panels: of the configuration, each a curve: with the title of its panel, its name there, levels that are
            numbers, and the quantity to draw, certified accuracy by default.
        path: the file to write.
        dataset: of the training; any but OCTMNIST is named as a stand-in.
        domains: names in the legend by choice of domains, as the table has it.

    Returns:
        ``path``.

    Raises:
        ValueError: if a point was certified by domains without a name.
    """
    found = rows_of_panels(folder, panels)
    titles = list(dict.fromkeys(panels[name]["title"] for name in found))
    figure, axes = panel_axes(len(titles), len(titles), _SIZE)
    for shown, own in zip(titles, axes, strict=True):
        curves = {name: rows for name, rows in found.items() if panels[name]["title"] == shown}
        _draw_panel(own, {name: panels[name] for name in curves}, list(curves.values()), domains)
    figure.legend(handles=_meanings(domains), loc="outside lower center", ncols=len(domains) + 1, frameon=False)
    heading(figure, _heading(dataset))
    return save(figure, path)


def _draw_panel(axes: Axes, panels: Panels, curves: Sequence[Sequence[Row]], domains: Mapping[str, str]) -> None:
    handles = []
    for panel, rows, color in zip(panels.values(), curves, _COLORS, strict=False):
        _draw_curve(axes, panel, rows, color, domains)
        handles.append(Line2D([], [], color=color, label=panel["curve"]))
    first = next(iter(panels.values()))
    levels = [level for panel in panels.values() for level in panel["levels"]]
    axes.set_xlim(
        min(levels) - _MARGIN * max(levels), (1 + _MARGIN) * max(levels)
    )  # also where few points are finished
    axes.set(title=first["title"], xlabel="poisoned images per batch, n", ylabel=_quantity(first), ylim=(0, 1.02))
    axes.legend(handles=handles, frameon=False, fontsize="small")
    axes.grid(alpha=0.3)
    plain(axes)


def _quantity(panel: Mapping[str, Any]) -> str:
    return panel.get("quantity", "certified accuracy")


def _heading(dataset: str) -> str:
    own = f"Fine-tuning on {title(dataset)}"
    return own if dataset == ORIGINAL else f"{own}, a stand-in for {title(ORIGINAL)}: not the paper's figure"


def _draw_curve(
    axes: Axes, panel: Mapping[str, Any], rows: Sequence[Row], color: str, domains: Mapping[str, str]
) -> None:
    for choice, style in zip(domains, _STYLES, strict=False):
        chosen = {panel["levels"][int(row["level"])]: row for row in rows if domains_of(row, domains) == choice}
        values = [float(row[_quantity(panel)]) for row in chosen.values()]
        axes.plot(list(chosen), values, "o", linestyle=style, color=color, markersize=3)
    nominal = {panel["levels"][int(row["level"])]: float(row["nominal accuracy"]) for row in rows}
    axes.plot(list(nominal), list(nominal.values()), ":", color=color, linewidth=1.0)


def _meanings(domains: Mapping[str, str]) -> list[Line2D]:
    lines = [
        Line2D([], [], color="black", linestyle=style, marker="o", markersize=3, label=f"certified by the {name}")
        for style, name in zip(_STYLES, domains.values(), strict=False)
    ]
    return [*lines, Line2D([], [], color="black", linestyle=":", linewidth=1.0, label="without poison")]
