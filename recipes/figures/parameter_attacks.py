"""Attacked trajectories of two parameters inside what is certified (figure 7)."""

from pathlib import Path

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from recipes.figures.canvas import VERMILION, new_figure, plain, save

_SHOWN = 5  # boxes of each panel, at steps evenly apart
_EDGES = {"box": ":", "box and ball": "-"}


def draw_parameter_attacks(rows: pd.DataFrame, path: Path) -> Path:
    """Draw one panel for each adversary and pair: trajectories in black, certified boxes in color.

    The ball is over all parameters together, far larger than the reach of two of them: its radius is in the title.

    Args:
        rows: what ``trajectories.csv`` of `recipes.attacks.parameters` has.
        path: the file to write.

    Returns:
        ``path``.
    """
    adversaries, pairs = rows["adversary"].unique(), rows["pair"].unique()
    figure = new_figure(4.2 * len(pairs), 4 * len(adversaries) + 0.4)
    panels = figure.subplots(len(adversaries), len(pairs), squeeze=False)
    for line, adversary in zip(panels, adversaries, strict=True):
        for axes, pair in zip(line, pairs, strict=True):
            _draw_panel(axes, rows[(rows["adversary"] == adversary) & (rows["pair"] == pair)])
            axes.set_title(f"{adversary}; ball of radius {_radius(rows, adversary):.2g}", fontsize="small")
            axes.set(**dict(zip(("xlabel", "ylabel"), pair.split(", "), strict=True)))
            axes.locator_params(axis="x", nbins=6)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return save(figure, path)


def _radius(rows: pd.DataFrame, adversary: str) -> float:
    """Return the radius of the ball after the last step."""
    balls = rows[(rows["adversary"] == adversary) & (rows["kind"] == "ball") & (rows["step"] == rows["step"].max())]
    return float((balls["x_upper"] - balls["x_lower"]).iloc[0] / 2)


def _draw_panel(axes: Axes, rows: pd.DataFrame) -> None:
    last = int(rows["step"].max())
    for step in sorted({round(last * k / _SHOWN) for k in range(1, _SHOWN + 1)}):
        shade = colormaps["viridis"](step / last * 0.9)
        for _, row in rows[(rows["kind"] == "bounds") & (rows["step"] == step)].iterrows():
            size = (row["x_upper"] - row["x_lower"], row["y_upper"] - row["y_lower"])
            edge = _EDGES[row["name"]]
            axes.add_patch(Rectangle((row["x_lower"], row["y_lower"]), *size, fill=False, color=shade, linestyle=edge))
    for name, trajectory in rows[rows["kind"] == "attack"].groupby("name"):
        color, width, order = (VERMILION, 1.2, 3) if name == "clean" else ("black", 0.7, 2)
        axes.plot(trajectory["x_lower"], trajectory["y_lower"], color=color, linewidth=width, zorder=order)
    axes.autoscale_view()
    axes.tick_params(labelsize=7)
    plain(axes)


def _legend() -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=VERMILION, label="no poison"),
        Line2D([], [], color="black", linewidth=0.7, label="attacks"),
        Line2D([], [], color=colormaps["viridis"](0.5), linestyle=":", label="box (by step)"),
        Line2D([], [], color=colormaps["viridis"](0.5), label="box with the ball's help"),
    ]
