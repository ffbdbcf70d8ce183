"""Nominal and worst mean squared error after every step, by the domain that certifies it."""

from collections.abc import Mapping
from pathlib import Path

from recipes.figures.canvas import new_figure, plain, save
from recipes.runs.run import Run
from recipes.runs.steps import recorded
from recipes.strengths import describe

_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")


def draw_domain_comparison(runs: Mapping[str, Run], path: Path) -> Path:
    """Draw the worst case that each run certifies, and the nominal one that all have in common.

    Args:
        runs: trainings with the same seed and a `MSEOverSteps` among their callbacks, by name of their domains.
        path: the file to write.

    Returns:
        ``path``.
    """
    figure = new_figure(7.5, 4.6)
    axes = figure.subplots()
    histories = {name: recorded(run) for name, run in runs.items()}
    longest = max(histories.values(), key=len)
    axes.plot(range(len(longest)), [values["nominal MSE"] for values in longest], color="black", label="nominal")
    for color, (name, history) in zip(_COLORS, histories.items(), strict=False):
        axes.plot(range(len(history)), [values["worst MSE"] for values in history], color=color, label=name)
    axes.set(
        xlabel="training step",
        ylabel="validation MSE (target scaled to [0, 1])",
        yscale="log",
        title=f"worst case certified against {describe(next(iter(runs.values())).adversary)}",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    plain(axes)
    return save(figure, path)
