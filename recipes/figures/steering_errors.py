"""Bounds on the squared error of the steering angle against the number of poisoned frames (figure 6)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from recipes.figures.canvas import COLORS, plain, save
from recipes.figures.panels import Panels, Row, domains_of, panel_axes, rows_of_panels

_SIZE = (4.0, 3.6)


def draw_steering_errors(folder: Path, panels: Panels, path: Path, domains: Mapping[str, str]) -> Path:
    """Draw a panel for each ν: nominal, worst and best mean squared error over the levels, n.

    Where the best case falls to zero, which the logarithmic axis does not have, its curve leaves the picture.

    Args:
        folder: of the sweep, gathered.
        panels: of the configuration, each with a title and levels that are numbers.
        path: the file to write.
        domains: names in the legend by choice of domains, as the table has it.

    Returns:
        ``path``.

    Raises:
        ValueError: if a point was certified by domains without a name.
    """
    found = rows_of_panels(folder, panels)
    figure, axes = panel_axes(len(found), len(found), _SIZE)
    for (name, rows), own in zip(found.items(), axes, strict=True):
        levels = panels[name]["levels"]
        for choice, color in zip(domains, COLORS, strict=False):
            chosen = [row for row in rows if domains_of(row, domains) == choice]
            _draw_bounds(own, [levels[int(row["level"])] for row in chosen], chosen, color, domains[choice])
        own.set(title=panels[name]["title"], xlabel="moved angles per batch, n", yscale="log")
        own.grid(alpha=0.3)
        plain(own)
    figure.axes[0].set_ylabel("MSE (rad²)")
    handles, _ = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return save(figure, path)


def _draw_bounds(axes: Axes, n: Sequence[float], rows: Sequence[Row], color: str, name: str) -> None:
    if not rows:
        return
    best, nominal, worst = ([float(row[f"{case} MSE"]) for row in rows] for case in ("best", "nominal", "worst"))
    axes.fill_between(n, best, worst, color=color, alpha=0.12)
    axes.plot(n, worst, "o-", color=color, markersize=3, label=f"worst and best case, {name}")
    axes.plot(n, best, "o-", color=color, markersize=3)
    axes.plot(n, nominal, ":", color="black", linewidth=1.2)
