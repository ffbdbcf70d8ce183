"""Certified accuracy of several defenses against inserted and deleted samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from recipes.figures.canvas import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, new_figure, plain, save
from recipes.runs.edits import curve

_COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#999999", "#F0E442", "black")


def draw_edits(rows: pd.DataFrame, path: Path, largest: int, published: Mapping[str, Sequence[float]]) -> Path:
    """Draw how certified accuracy falls with the number of edits, one curve per defense, dashed for partitions.

    Args:
        rows: of all defenses, as `recipes.runs.edits.rows_of` makes them.
        path: the file to write.
        largest: number of edits up to which curves are drawn.
        published: accuracy, and edits at which certified accuracy is one half, by name.

    Returns:
        ``path``.
    """
    figure = new_figure(10.5, 5.2)
    axes = figure.subplots()
    for index, (name, some) in enumerate(rows.groupby("defense", sort=False)):
        n, values = curve(some)
        style = "--" if str(name).startswith("partitions") else ("-", ":")[index // len(_COLORS) % 2]
        ends = [*n, n[-1], max(n[-1], largest)]
        color = _COLORS[index % len(_COLORS)]
        axes.step(ends, [*values, 0.0, 0.0], where="pre", color=color, linestyle=style, label=name)
    for name, (_, half) in published.items():
        axes.plot(half, 0.5, marker="o", markerfacecolor="none", color="gray", linestyle="")
        axes.annotate(name, (half, 0.5), (4, 6), textcoords="offset points", fontsize=7, color="gray", rotation=30)
    axes.set(
        xlabel="inserted and deleted training samples, n (a replaced one is two)",
        ylabel="fraction of test samples, right and certified",
        xlim=(0, largest),
        ylim=(0, 1),
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
    plain(axes)
    return save(figure, path)
