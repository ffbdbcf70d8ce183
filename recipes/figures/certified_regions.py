"""The region of the plane where predictions are not certified, for one adversary or several (figure 1)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import AbstractPathEffect, Normal, Stroke

from recipes.figures.canvas import BLUE, VERMILION, new_figure, save
from recipes.runs.regions import Regions
from recipes.runs.run import Run, describe

_CLASS_COLORS = (BLUE, VERMILION)
_CLASS_NAMES = ("upper moon", "lower moon")
_MARKERS = ("o", "^")
_SHOWN_POINTS = 400
_OUTLINE: Sequence[AbstractPathEffect] = (Stroke(linewidth=3.5, foreground="black"), Normal())


def draw_certified_regions(runs: Sequence[Run], path: Path, resolution: int = 200) -> Path:
    """Draw test points, decision boundary and the region where the prediction is not certified, one panel per run.

    A place is uncertified if two models within the parameter bounds may predict different classes there.

    Args:
        runs: trainings on `HalfMoons`.
        path: the file to write.
        resolution: places per side of the grid.

    Returns:
        ``path``.
    """
    figure = new_figure(1 + 6 * len(runs), 5.6)
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        draw_plane(axes, {"not certified": Regions.of(run, resolution)})
        results = ", ".join(f"{name} {value:.3f}" for name, value in run.results.items())
        axes.set_title(f"{type(run.adversary).__name__}, {describe(run.adversary)}\n{results}", fontsize="medium")
    return save(figure, path)


def draw_plane(axes: Axes, regions: Mapping[str, Regions], columns: int = 2) -> None:
    """Draw nested regions; points and decision boundary are those of the first.

    Args:
        axes: to draw into.
        regions: by name in the legend, the weakest adversary first: the region of a stronger one contains it.
        columns: of the legend.
    """
    first = next(iter(regions.values()))
    shades = mpl.colormaps["YlGn_r"](np.linspace(0.85, 0.3, len(regions))[::-1])
    for region, shade in reversed(list(zip(regions.values(), shades, strict=True))):
        axes.contourf(region.x, region.y, ~region.certified, levels=[0.5, 1.5], colors=[shade])
    for index, (marker, color) in enumerate(zip(_MARKERS, _CLASS_COLORS, strict=True)):
        own = first.points[:_SHOWN_POINTS][first.classes[:_SHOWN_POINTS] == index]
        axes.scatter(*own.T, s=14, marker=marker, color=color, edgecolors="white", linewidths=0.4)
    axes.contour(first.x, first.y, first.margin, levels=[0], colors="white", linewidths=2, path_effects=_OUTLINE)
    handles = [Patch(color=shade, label=name) for name, shade in zip(regions, shades, strict=True)]
    axes.legend(
        handles=[*handles, *_other_handles()],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=columns,
        frameon=False,
    )
    axes.set(xlabel="first coordinate", ylabel="second coordinate", aspect="equal")


def _other_handles() -> list[Line2D]:
    boundary = Line2D([], [], color="white", linewidth=2, path_effects=_OUTLINE, label="decision boundary")
    points = [
        Line2D([], [], linestyle="", marker=marker, color=color, label=f"{name} (test)")
        for marker, color, name in zip(_MARKERS, _CLASS_COLORS, _CLASS_NAMES, strict=True)
    ]
    return [boundary, *points]
