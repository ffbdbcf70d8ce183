"""Attacked outputs inside certified intervals."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from recipes.figures.canvas import BLUE, VERMILION, new_figure, plain, save


def draw_output_attacks(rows: pd.DataFrame, path: Path) -> Path:
    """Draw one panel for each adversary: for each point the certified interval, around the output without poison.

    Args:
        rows: what ``outputs.csv`` of `recipes.attacks.outputs` has.
        path: the file to write.

    Returns:
        ``path``.
    """
    adversaries = rows["adversary"].unique()
    figure = new_figure(4.2 * len(adversaries), 3.6)
    panels = figure.subplots(1, len(adversaries), squeeze=False)[0]
    for axes, adversary in zip(panels, adversaries, strict=True):
        _draw_panel(axes, rows[rows["adversary"] == adversary])
        axes.set_title(adversary, fontsize="small")
    panels[0].set_ylabel("output − output without poison")
    panels[0].legend(frameon=False, fontsize="small")
    return save(figure, path)


def _draw_panel(axes: Axes, rows: pd.DataFrame) -> None:
    points, nominal = range(len(rows)), rows["nominal"]
    axes.vlines(points, rows["lower"] - nominal, rows["upper"] - nominal, color=BLUE, linewidth=4, label="certified")
    for column, label in (("attack_lower", "attacks"), ("attack_upper", None)):
        axes.plot(points, rows[column] - nominal, "_", color=VERMILION, markersize=9, label=label)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xlabel("test row")
    axes.tick_params(labelsize=7)
    plain(axes)
