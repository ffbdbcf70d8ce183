"""Certified accuracy against the number of flipped training labels, and against accuracy over a sweep."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes

from recipes.figures.canvas import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, new_figure, plain, save
from recipes.figures.panels import Panels, rows_of_panels
from recipes.runs.flips import CertifiedFlips
from recipes.runs.run import Run

_COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
_MARKERS = ("o", "s", "^", "D", "v", "P")


def draw_flips_curve(runs: Sequence[Run], path: Path) -> Path:
    """Draw how certified accuracy falls with the number of flipped labels, one curve per run.

    Args:
        runs: trainings of linear heads that wrote ``flips.csv``, or whose models have `certified_flips`; the test
            batches of their data have class indices. Of several, each curve is named for the folder of its run.
        path: the file to write.

    Returns:
        ``path``.
    """
    names = [run.output_dir.name for run in runs] if len(runs) > 1 else ["certified accuracy"]
    return draw_curves([certified_flips(run, name) for run, name in zip(runs, names, strict=True)], path)


@torch.no_grad()
def certified_flips(run: Run, label: str) -> CertifiedFlips:
    """Return the certified flips of the test samples that the run's certificate wrote to ``flips.csv``, else of all.

    Args:
        run: a training whose model has `certified_flips`.
        label: name in legends.
    """
    if (run.output_dir / "flips.csv").is_file():
        return CertifiedFlips.load(run.output_dir / "flips.csv", label)
    flips, correct = [], []
    for x, y in run.datamodule.test_dataloader():
        x = x.to(run.module.device)
        flips.append(run.model.certified_flips(x).cpu())
        correct.append(run.module(x).argmax(dim=-1).cpu() == y.cpu())
    return CertifiedFlips(label, torch.cat(flips), torch.cat(correct))


def draw_curves(curves: Sequence[CertifiedFlips], path: Path) -> Path:
    """Draw certified accuracy against n as steps, nominal accuracy as a dotted line, the median as a marker.

    Args:
        curves: at least one.
        path: the file to write.

    Returns:
        ``path``.
    """
    if not curves:
        raise ValueError("Expected at least one curve to draw, but got none.")
    figure = new_figure(7, 4.6)
    axes = figure.subplots()
    right = max(1.0, 1.02 * max(int(curve.flips.max()) for curve in curves))
    for index, curve in enumerate(curves):
        color, marker = _style(index)
        _draw_curve(axes, curve, right, color, marker)
    axes.plot([], [], color="black", linestyle=":", label="nominal accuracy")
    axes.set(xlabel="flipped training labels, n", ylabel="fraction of test samples", xlim=(0, right), ylim=(0, 1))
    axes.set_title("Certified accuracy against label flips (marker: median certified flips)", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    plain(axes)
    return save(figure, path)


def _draw_curve(axes: Axes, curve: CertifiedFlips, right: float, color: str, marker: str) -> None:
    n, values = curve.steps()
    axes.step([*n, n[-1], right], [*values, 0.0, 0.0], where="pre", color=color, label=_named(curve))
    axes.axhline(curve.accuracy, color=color, linestyle=":", linewidth=1.2)
    if curve.median >= 0:
        axes.plot(curve.median, curve.certified_accuracy(curve.median), marker, color=color, markeredgecolor="white")


def _named(curve: CertifiedFlips) -> str:
    return f"{curve.label}: median n = {curve.median:g}, nominal {curve.accuracy:.3f}"


def draw_probes(folder: Path, panels: Panels, path: Path, *, ceiling: float | None = None) -> Path:
    """Draw the points of a sweep over features and steps by `draw_search`: a color for each panel.

    Args:
        folder: of the sweep, gathered; the points have written ``flips.csv``.
        panels: of the configuration, whose levels are numbers of steps.
        path: the file to write.
        ceiling: the median that no classifier which treats classes alike can exceed (`recipes.baselines.ceiling`).

    Returns:
        ``path``.
    """
    found = {
        name: [
            CertifiedFlips.load(
                folder / row["point"] / "flips.csv", f"{panels[name]['levels'][int(row['level'])]} steps"
            )
            for row in rows
        ]
        for name, rows in rows_of_panels(folder, panels).items()
    }
    return draw_search(found, path, ceiling=ceiling)


def draw_search(groups: Mapping[str, Iterable[CertifiedFlips]], path: Path, *, ceiling: float | None = None) -> Path:
    """Draw accuracy against median certified flips, one point per setting: up and to the right is better.

    Args:
        groups: the settings that share a color, such as all with the same features, by name; each point is annotated
            with its own label.
        path: the file to write.
        ceiling: a median to draw as a vertical line.

    Returns:
        ``path``.
    """
    found = {name: list(curves) for name, curves in groups.items()}
    if not any(found.values()):
        raise ValueError("Expected at least one setting to draw, but got none.")
    figure = new_figure(8, 5.6)
    axes = figure.subplots()
    for index, (name, curves) in enumerate(found.items()):
        color, marker = _style(index)
        medians, accuracies = [curve.median for curve in curves], [curve.accuracy for curve in curves]
        axes.plot(medians, accuracies, color=color, marker=marker, linewidth=0.8, label=name)
        for place, (curve, median, accuracy) in enumerate(zip(curves, medians, accuracies, strict=True)):
            offset, side = ((-6, -2), "right") if place % 2 else ((6, -2), "left")  # neighbors are often close
            at = (median, accuracy)
            axes.annotate(curve.label, at, offset, textcoords="offset points", fontsize=7, horizontalalignment=side)
    if ceiling is not None:
        axes.axvline(ceiling, color="black", linestyle=":", label=f"ceiling of symmetric classifiers: {ceiling:g}")
    axes.set(xlabel="median certified flips", ylabel="nominal accuracy")
    axes.margins(x=0.18, y=0.08)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    plain(axes)
    return save(figure, path)


def _style(index: int) -> tuple[str, str]:
    """Return color and marker; after all colors the markers shift, so pairs repeat late."""
    shift = index // len(_COLORS)
    return _COLORS[index % len(_COLORS)], _MARKERS[(index + shift) % len(_MARKERS)]
