"""Nominal, worst and best mean squared error over the steps in several panels (figure 2)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from recipes.figures.canvas import COLORS, plain, save
from recipes.figures.panels import Panels, Row, domains_of, level_name, panel_axes, rows_of_panels
from recipes.runs.steps import FILE
from recipes.runs.tables import read

_STYLES = ("--", "-", "-.")
_SIZE = (4.2, 3.6)
_HEADROOM = 3.0  # for the legend

Curves = Mapping[str, Sequence[float]]


def draw_mse_panels(
    folder: Path,
    panels: Panels,
    path: Path,
    domains: Mapping[str, str],
    limits: Sequence[float],
    across: int = 4,
) -> Path:
    """Draw the sweep's panels: a color for each level, a style of line for each choice of domains.

    A curve that ends in a cross was stopped there because its certificate had become vacuous.

    Args:
        folder: of the sweep, gathered; the points have recorded their steps.
        panels: of the configuration, each with a title and a symbol.
        path: the file to write.
        domains: names in the legend by choice of domains, as the table has it.
        limits: of the logarithmic axis; a panel whose curves stay lower ends there.
        across: panels in a row.

    Returns:
        ``path``.

    Raises:
        ValueError: if a point was certified by domains without a name.
    """
    found, curves = rows_of_panels(folder, panels), _curves(folder)
    figure, axes = panel_axes(len(found), across, _SIZE)
    for (name, rows), own in zip(found.items(), axes, strict=True):
        _draw_panel(own, [(level_name(panels[name], row), row, curves[row["point"]]) for row in rows], domains)
        own.set(title=panels[name]["title"], xlabel="training step", ylabel="MSE", yscale="log")
        highest = max(max(curves[row["point"]]["worst MSE"]) for row in rows)
        own.set_ylim(limits[0], min(limits[1], _HEADROOM * highest))
    handles = [
        *(Line2D([], [], color="black", linestyle=s, label=f"worst and best case, {n}") for s, n in _styled(domains)),
        Line2D([], [], color="black", linestyle=":", label="nominal"),
        Line2D([], [], color="black", linestyle="", marker="x", label="stopped: the certificate is vacuous"),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles) if len(found) >= across else 1, frameon=False
    )
    return save(figure, path)


def _styled(domains: Mapping[str, str]) -> list[tuple[str, str]]:
    return list(zip(_STYLES, domains.values(), strict=False))


def _curves(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return the columns of the steps of each point."""
    curves: dict[str, dict[str, list[float]]] = {}
    for row in read(folder, FILE):
        columns = curves.setdefault(row["point"], {})
        for name, value in row.items():
            if name != "point":
                columns.setdefault(name, []).append(float(value))
    return curves


def _draw_panel(axes: Axes, lines: Sequence[tuple[str, Row, Curves]], domains: Mapping[str, str]) -> None:
    colors = dict(zip(dict.fromkeys(name for name, _, _ in lines), COLORS, strict=False))
    last = max(curve["step"][-1] for _, _, curve in lines)
    for name, row, curve in lines:
        style = _STYLES[list(domains).index(domains_of(row, domains))]
        for case in ("worst MSE", "best MSE"):
            axes.plot(curve["step"], curve[case], color=colors[name], linestyle=style, linewidth=1.2)
        axes.plot(curve["step"], curve["nominal MSE"], color=colors[name], linestyle=":", linewidth=1.2)
        if curve["step"][-1] < last:
            axes.plot(curve["step"][-1], curve["worst MSE"][-1], "x", color=colors[name], clip_on=False)
    axes.legend(handles=[Line2D([], [], color=color, label=name) for name, color in colors.items()], frameon=False)
    axes.grid(alpha=0.3)
    plain(axes)
