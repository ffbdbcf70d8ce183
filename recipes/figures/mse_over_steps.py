"""Best, nominal and worst mean squared error after every step (figure 2)."""

from collections.abc import Sequence
from pathlib import Path

from recipes.figures.canvas import BLUE, new_figure, plain, save
from recipes.runs.run import Run, describe
from recipes.runs.steps import recorded

_BAND, _NOMINAL = BLUE, "black"
_LOGARITHMIC_FROM = 20.0


def draw_mse_over_steps(runs: Sequence[Run], path: Path) -> Path:
    """Draw what `MSEOverSteps` recorded, one panel per run; the axis is logarithmic if values differ much.

    Args:
        runs: trainings of regressors with a `MSEOverSteps` among their callbacks.
        path: the file to write.

    Returns:
        ``path``.

    Raises:
        ValueError: if a run has no `MSEOverSteps`.
    """
    figure = new_figure(1 + 5.5 * len(runs), 4.2)
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, run in zip(panels, runs, strict=True):
        history = recorded(run)
        steps = range(len(history))
        best, nominal, worst = ([values[f"{name} MSE"] for values in history] for name in ("best", "nominal", "worst"))
        axes.fill_between(
            steps, best, worst, color=_BAND, alpha=0.2, linewidth=0, label="contains every poisoned training"
        )
        axes.plot(steps, worst, color=_BAND, linestyle="--", label="worst case, certified")
        axes.plot(steps, best, color=_BAND, linestyle=":", label="best case, certified")
        axes.plot(steps, nominal, color=_NOMINAL, label="nominal")
        axes.set(xlabel="training step", title=f"{type(run.adversary).__name__}, {describe(run.adversary)}")
        if max(worst) > _LOGARITHMIC_FROM * min(nominal):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        plain(axes)
    panels[0].set_ylabel("validation MSE (target scaled to [0, 1])")
    panels[0].legend(frameon=False)
    return save(figure, path)
