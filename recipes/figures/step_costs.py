"""Costs of certified steps: by workload, and how they grow."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from recipes.figures.canvas import COLORS, new_figure, plain, save


def draw_step_costs(ratios: Mapping[str, float], path: Path, clock: str = "CPU time") -> Path:
    """Draw how many plain steps a certified one costs.

    Args:
        ratios: by workload.
        path: the file to write.
        clock: what was measured.

    Returns:
        ``path``.
    """
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    bars = axes.barh(list(ratios), list(ratios.values()), 0.6, color=COLORS[0])
    axes.bar_label(bars, fmt="{:.1f}", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(f"certified step / plain step, {clock}")
    axes.margins(x=0.1)
    plain(axes)
    return save(figure, path)


def draw_growth(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: Path, clock: str = "CPU time"
) -> Path:
    """Draw seconds of a step against what grows, both logarithmic, with the slope of each curve.

    Args:
        curves: by name of what grows, then by kind of step; pairs of its value and seconds.
        path: the file to write.
        clock: what was measured.

    Returns:
        ``path``.
    """
    figure = new_figure(1 + 3.6 * len(curves), 3.8)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (axis, kinds) in zip(panels, curves.items(), strict=True):
        for color, (kind, points) in zip(COLORS, kinds.items(), strict=False):
            values, seconds = zip(*points, strict=True)
            axes.plot(values, seconds, "o-", color=color, label=f"{kind}, slope {slope(points):.2f}")
        axes.set(xlabel=axis, xscale="log", yscale="log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
        plain(axes)
    panels[0].set_ylabel(f"{clock} of a step, in seconds")
    return save(figure, path)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the least squares slope of the logarithms: 1 is linear growth.

    Args:
        points: at least two pairs of positive numbers.

    Example:
        >>> slope([(1.0, 2.0), (10.0, 200.0)])
        2.0
    """
    x, y = np.log(np.asarray(points, dtype=float)).T
    return round(float(np.polyfit(x, y, 1)[0]), 6)
