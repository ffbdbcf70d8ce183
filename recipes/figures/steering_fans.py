"""Frames of a drive with the steering angle, and with all angles that poisoned trainings could steer (figure 6)."""

from collections.abc import Iterable, Sequence
from math import degrees, pi
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Wedge
from numpy.typing import NDArray

from recipes.data.udacity import HEIGHT, WIDTH, read_frame
from recipes.figures.canvas import BLUE, VERMILION, heading, new_figure, save
from recipes.runs.run import Run, describe

_COLORS = {"true": "#F0E442", "nominal": BLUE, "certified": VERMILION}
_LENGTH = 50.0  # of the lines, in pixels
_ACROSS = 3
_TOP = 90.0  # in degrees of the page: straight ahead


def draw_steering_fans(runs: Sequence[Run], path: Path, frames: int = 6) -> Path:
    """Draw test frames, evenly over their time, each with true and predicted angle and the certified fan.

    A line points where the steering wheel does: up is straight ahead, to the left is positive. The fan holds the
    prediction of every run that the adversary could have caused; one that reaches beyond a quarter turn to a side is
    cut there in the picture, not in the numbers above it.

    Args:
        runs: trainings on `Steering`, one below the other.
        path: the file to write.
        frames: how many.

    Returns:
        ``path``.
    """
    rows = -(-len(_chosen(runs[0], frames)) // _ACROSS)
    figure = new_figure(4.2 * _ACROSS, 0.4 + 1.7 * rows * len(runs))
    panels = figure.subplots(rows * len(runs), _ACROSS, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for index, run in enumerate(runs):
        _draw_run(panels[index * rows : (index + 1) * rows].ravel(), run, _chosen(run, frames))
    against = "; ".join(describe(run.adversary) for run in runs)
    heading(figure, f"{against}: true (yellow), predicted (blue) and certified (orange) angles")
    return save(figure, path)


def _chosen(run: Run, frames: int) -> NDArray[np.int64]:
    """Return the positions of the frames that are drawn."""
    data = run.datamodule
    count = len(range(len(data.angles))[data.splits["test"]])
    places = np.linspace(0, count - 1, min(frames, count)).round().astype(np.int64)
    return places + data.splits["test"].start


@torch.no_grad()
def _draw_run(panels: Iterable[Axes], run: Run, chosen: NDArray[np.int64]) -> None:
    data = run.datamodule
    x = data.features[chosen].to(run.module.device)
    bounds, nominal = run.model.bound_forward(x), run.module(x)
    for axes, index, own, low, high in zip(panels, chosen, nominal, bounds.lower, bounds.upper, strict=False):
        _draw_frame(axes, data.drive.frames[index], float(data.angles[index]), (low.item(), own.item(), high.item()))


def _draw_frame(axes: Axes, frame: Path, true: float, predicted: tuple[float, float, float]) -> None:
    """Draw one frame with its angles in radians: the true one, and the smallest, nominal and largest predicted ones."""
    low, nominal, high = predicted
    axes.imshow(read_frame(frame).permute(1, 2, 0).numpy(), extent=(0, WIDTH, 0, HEIGHT))
    start = (WIDTH / 2, 0.0)
    first, last = (degrees(min(max(angle, -pi / 2), pi / 2)) for angle in (low, high))
    axes.add_patch(Wedge(start, _LENGTH, _TOP + first, _TOP + last, color=_COLORS["certified"], alpha=0.8))
    for angle, name in ((true, "true"), (nominal, "nominal")):
        end = (start[0] - _LENGTH * np.sin(angle), start[1] + _LENGTH * np.cos(angle))
        axes.plot(*zip(start, end, strict=True), color=_COLORS[name], linewidth=1.2)
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.set_title(
        f"true {degrees(true):.1f}°, predicted {degrees(nominal):.1f}° in [{degrees(low):.1f}°, {degrees(high):.1f}°]",
        fontsize="small",
    )
