"""Mean width of the parameters' bounds by the method of propagation, in several panels (figure 3)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from recipes.figures.canvas import BLUE, VERMILION, plain, save
from recipes.figures.panels import Panels, Row, level_name, panel_axes, rows_of_panels

_STYLES = ((VERMILION, "o", "-"), (BLUE, "s", "-"), ("black", "x", "--"))
_SIZE = (3.2, 3.0)
_METHOD = "callbacks.certified.method"
_WIDTH = "mean width"


def draw_crown_vs_ibp(folder: Path, panels: Panels, path: Path, methods: Mapping[str, str], across: int = 4) -> Path:
    """Draw the sweep's panels: a line for each method, over the levels of the panel's setting.

    Args:
        folder: of the sweep, gathered.
        panels: of the configuration, each with a title and a symbol.
        path: the file to write.
        methods: names in the legend by method of propagation.
        across: panels in a row.

    Returns:
        ``path``.
    """
    found = rows_of_panels(folder, panels)
    figure, axes = panel_axes(len(found), across, _SIZE)
    drawn = list(axes)
    for (name, rows), own in zip(found.items(), drawn, strict=True):
        _draw_panel(own, panels[name], rows, methods)
        own.set(title=panels[name]["title"], yscale="log")
    drawn[0].set_ylabel("mean width of parameters")
    figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods), frameon=False)
    return save(figure, path)


def _draw_panel(axes: Axes, panel: Mapping[str, object], rows: Sequence[Row], methods: Mapping[str, str]) -> None:
    places = list(dict.fromkeys(level_name(panel, row) for row in rows))
    for (method, label), (color, marker, line) in zip(methods.items(), _STYLES, strict=False):
        own = [row for row in rows if row[_METHOD] == method]
        x = [places.index(level_name(panel, row)) for row in own]
        widths = [float(row[_WIDTH]) for row in own]
        axes.plot(x, widths, color=color, marker=marker, linestyle=line, label=label)
    axes.set_xticks(range(len(places)), places)
    axes.grid(alpha=0.3)
    plain(axes)
