"""What is certified against the strength of the adversary, for the points of one job."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from recipes.figures.canvas import COLORS, plain, save
from recipes.figures.panels import panel_axes
from recipes.runs.results import Result
from recipes.runs.run import SYMBOLS
from recipes.runs.tables import finished

FILE = "strengths.png"
_STRENGTH = "adversary."
_UNITS = ("accuracy", "MSE", "width")
_STYLES = ("-", "--", ":", "-.")
_SIZE = (5.0, 3.6)
_LOGARITHMIC_FROM = 30.0


def draw_strengths(folder: Path) -> Path:
    """Draw every certified quantity against the setting of the adversary in which the points differ.

    Quantities of one unit share a panel. If the points differ in several settings, they are drawn side by side.

    Args:
        folder: of the job, in which the folders of its points are.

    Returns:
        Path of the picture, ``strengths.png`` in ``folder``.

    Raises:
        FileNotFoundError: if no point is finished.
    """
    results = finished(folder)
    label, places, ticks = _places(results)
    panels: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for result in results for name in result.values):
        panels.setdefault(next((unit for unit in _UNITS if unit in name), name), []).append(name)
    figure, axes = panel_axes(len(panels), 3, _SIZE)
    for (unit, names), own in zip(panels.items(), axes, strict=True):
        _draw_panel(own, results, names, places)
        own.set(xlabel=label, ylabel=unit)
        if ticks:
            own.set_xticks(places, ticks, rotation=30, ha="right", fontsize="small")
    return save(figure, folder / FILE)


def _places(results: Sequence[Result]) -> tuple[str, list[float], list[str]]:
    """Return the name of the horizontal axis, the place of each point on it, and names of places that are no values."""
    names = dict.fromkeys(name for result in results for name in result.settings if name.startswith(_STRENGTH))
    differing = [name for name in names if len({str(result.settings.get(name)) for result in results}) > 1]
    values = [[result.settings.get(name) for name in differing] for result in results]
    if len(differing) == 1 and all(isinstance(value, int | float) for (value,) in values):
        return _symbol(differing[0]), [float(value) for (value,) in values], []
    texts = [", ".join(f"{_symbol(n)} = {v}" for n, v in zip(differing, each, strict=True)) for each in values]
    return "", [float(place) for place in range(len(results))], texts


def _symbol(name: str) -> str:
    short = name.removeprefix(_STRENGTH)
    return SYMBOLS.get(short, short)


def _draw_panel(axes: Axes, results: Sequence[Result], names: Sequence[str], places: Sequence[Any]) -> None:
    order = sorted(range(len(results)), key=lambda index: places[index])
    drawn = []
    for index, name in enumerate(names):
        values = [results[at].values[name] for at in order]
        color, style = COLORS[index % len(COLORS)], _STYLES[index // len(COLORS) % len(_STYLES)]
        axes.plot([places[at] for at in order], values, "o", linestyle=style, color=color, markersize=3, label=name)
        drawn += values
    if min(drawn) > 0 and max(drawn) > _LOGARITHMIC_FROM * min(drawn):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    plain(axes)
