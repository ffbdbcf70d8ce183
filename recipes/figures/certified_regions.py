"""Where in the plane predictions cannot be certified, for one strength of the adversary or several (figure 1)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import AbstractPathEffect, Normal, Stroke
from torch import Tensor

from recipes.data.halfmoons import HalfMoons
from recipes.figures.canvas import new_figure, plain, save
from recipes.run import Run
from recipes.strengths import AXES, describe, label, varying_setting

_CLASS_COLORS = ("#0072B2", "#D55E00")  # blue and vermilion of Okabe and Ito, apart for color-blind readers too
_CLASS_NAMES = ("upper moon", "lower moon")
_MARKERS = ("o", "^")
_SHOWN_POINTS = 400
_MARGIN = 0.25
_OUTLINE: Sequence[AbstractPathEffect] = (Stroke(linewidth=3.5, foreground="black"), Normal())


def draw_certified_regions(runs: Sequence[Run], path: Path, resolution: int = 200) -> Path:
    """Draw points, decision boundary and uncertified regions; for several runs, also accuracy against strength.

    A place is uncertified if two models within the parameter bounds may predict different classes there. Data and
    decision boundary are those of the first run.

    Args:
        runs: trainings on `HalfMoons` whose adversaries differ in one setting at most, the weakest first.
        path: the file to write.
        resolution: places per side of the grid.

    Returns:
        ``path``.
    """
    setting = varying_setting([run.adversary for run in runs])
    if len(runs) == 1:
        figure = new_figure(7, 5.6)
        _draw_plane(figure.subplots(), runs, setting, resolution)
    else:
        figure = new_figure(12, 5.4)
        plane, accuracy = figure.subplots(1, 2, width_ratios=(1.6, 1))
        _draw_plane(plane, runs, setting, resolution)
        _draw_accuracy(accuracy, runs, setting)
    figure.suptitle(_title(runs, setting))
    return save(figure, path)


def _title(runs: Sequence[Run], setting: str) -> str:
    """The adversary; of several runs what their adversaries share, of one also what is certified."""
    name = type(runs[0].adversary).__name__
    if len(runs) > 1:
        return f"Half-moons against {name}, {describe(runs[0].adversary, without=setting)}"
    results = ", ".join(f"{name} {value:.3f}" for name, value in runs[0].results.items())
    return f"Half-moons against {name}, {describe(runs[0].adversary)}\n{results}"


def _draw_plane(axes: Axes, runs: Sequence[Run], setting: str, resolution: int) -> None:
    points, labels = runs[0].datamodule.points("test")
    x, y, grid = _grid(points, resolution)
    features = HalfMoons.polynomial_features(grid)
    shades = mpl.colormaps["YlGn_r"](np.linspace(0.85, 0.3, len(runs))[::-1])
    for run, shade in reversed(list(zip(runs, shades, strict=True))):  # the strongest's region contains the others
        uncertified = (~run.model.certify(features).certified).double().reshape(resolution, resolution)
        axes.contourf(x, y, uncertified, levels=[0.5, 1.5], colors=[shade])
    _draw_points(axes, points, labels)
    axes.contour(
        x,
        y,
        _margin(runs[0], features).reshape(resolution, resolution),
        levels=[0],
        colors="white",
        linewidths=2,
        path_effects=_OUTLINE,
    )
    axes.legend(
        handles=[*_region_handles(runs, setting, shades), *_point_handles()],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=3,
        frameon=False,
    )
    axes.set(xlabel="first coordinate", ylabel="second coordinate", aspect="equal")
    axes.set_title("Where the prediction is not certified", fontsize="medium")


@torch.no_grad()
def _margin(run: Run, features: Tensor) -> Tensor:
    """Second minus first logit of the nominal model: zero on its decision boundary."""
    logits = run.module(features.to(run.module.device)).cpu()
    return logits[:, 1] - logits[:, 0]


def _draw_points(axes: Axes, points: Tensor, labels: Tensor) -> None:
    shown, classes = points[:_SHOWN_POINTS], labels[:_SHOWN_POINTS]
    for index, (marker, color) in enumerate(zip(_MARKERS, _CLASS_COLORS, strict=True)):
        own = shown[classes == index].numpy()
        axes.scatter(*own.T, s=14, marker=marker, color=color, edgecolors="white", linewidths=0.4)


def _region_handles(runs: Sequence[Run], setting: str, shades: np.ndarray) -> list[Patch | Line2D]:
    regions = [
        Patch(color=shade, label=f"not certified, {label(run.adversary, setting)}")
        for run, shade in zip(runs, shades, strict=True)
    ]
    boundary = Line2D([], [], color="white", linewidth=2, path_effects=_OUTLINE, label="decision boundary")
    return [*regions, boundary]


def _point_handles() -> list[Line2D]:
    return [
        Line2D([], [], linestyle="", marker=marker, color=color, label=f"{name} (test)")
        for marker, color, name in zip(_MARKERS, _CLASS_COLORS, _CLASS_NAMES, strict=True)
    ]


def _draw_accuracy(axes: Axes, runs: Sequence[Run], setting: str) -> None:
    strengths = [getattr(run.adversary, setting) for run in runs]
    for name, color, marker in (("nominal accuracy", "black", "s"), ("certified accuracy", "#009E73", "o")):
        values = [run.results[name] for run in runs]
        axes.plot(strengths, values, color=color, marker=marker, label=name)
        for strength, value in zip(strengths, values, strict=True):
            axes.annotate(
                f"{value:.3f}", (strength, value), (0, 6), textcoords="offset points", ha="center", fontsize=8
            )
    axes.set(xlabel=AXES.get(setting, setting), ylabel="fraction of test points", ylim=(0, 1.08), xticks=strengths)
    axes.set_title("Test accuracy", fontsize="medium")
    axes.margins(x=0.12)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower left", frameon=False)
    plain(axes)


def _grid(points: Tensor, resolution: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates along both sides, and all places of the plane ``(resolution², 2)``, row by row."""
    low, high = points.min(dim=0).values - _MARGIN, points.max(dim=0).values + _MARGIN
    x, y = (torch.linspace(float(low[i]), float(high[i]), resolution, dtype=points.dtype) for i in (0, 1))
    vertical, horizontal = torch.meshgrid(y, x, indexing="ij")
    return x, y, torch.stack([horizontal.flatten(), vertical.flatten()], dim=1)
