"""Loss of one target point after every step of attacked trainings, inside what is certified (figure 8)."""

from pathlib import Path

import pandas as pd

from recipes.figures.canvas import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, new_figure, plain, save

_COLORS = (BLUE, GREEN, PURPLE, ORANGE, SKY, "#999999", "#F0E442")


def draw_collisions(rows: pd.DataFrame, path: Path) -> Path:
    """Draw every attack's loss, that without poison, and the certified bounds as a band.

    Args:
        rows: what ``losses.csv`` of `recipes.attacks.collision` has.
        path: the file to write.

    Returns:
        ``path``.
    """
    figure = new_figure(8.5, 4.4)
    axes = figure.subplots()
    bounds = rows[rows["kind"] == "bounds"]
    axes.fill_between(bounds["step"], bounds["lower"], bounds["upper"], color=VERMILION, alpha=0.18, label="certified")
    attacks = rows[rows["kind"] == "attack"]
    colors = iter(_COLORS * len(attacks))
    for name in attacks["name"].unique():
        line = attacks[attacks["name"] == name]
        clean = name == "clean"
        color, width = ("black", 2.0) if clean else (next(colors), 1.2)
        axes.plot(line["step"], line["loss"], color=color, linewidth=width, label="no poison" if clean else name)
    axes.set(xlabel="training step", ylabel="squared error of the target point")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
    plain(axes)
    return save(figure, path)
