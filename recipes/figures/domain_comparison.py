"""Nominal and worst mean squared error after every step, by the domain that certifies it."""

from collections.abc import Mapping
from pathlib import Path

from recipes.figures.canvas import COLORS, new_figure, plain, save
from recipes.figures.panels import Panels, Row, domains_of
from recipes.runs.run import SYMBOLS
from recipes.runs.steps import FILE
from recipes.runs.tables import read


def draw_domain_comparison(folder: Path, panels: Panels, path: Path, domains: Mapping[str, str]) -> Path:
    """Draw the worst case that each point certifies, and the nominal error of the longest training.

    Args:
        folder: of the sweep, gathered; the points have recorded their steps.
        panels: of the configuration; not used.
        path: the file to write.
        domains: names in the legend by choice of domains, as the table has it.

    Returns:
        ``path``.

    Raises:
        ValueError: if a point was certified by domains without a name.
    """
    points = {row["point"]: row for row in read(folder)}
    histories: dict[str, list[Row]] = {}
    for row in read(folder, FILE):
        histories.setdefault(row["point"], []).append(row)
    choices = list(domains)
    order = sorted(histories, key=lambda point: choices.index(domains_of(points[point], domains)))
    adversaries = {point: _adversary(points[point]) for point in order}
    several = len(set(adversaries.values())) > 1
    figure = new_figure(7.5, 4.6)
    axes = figure.subplots()
    longest = max(histories.values(), key=len)
    axes.plot(range(len(longest)), [float(row["nominal MSE"]) for row in longest], color="black", label="nominal")
    for index, point in enumerate(order):
        name = domains[domains_of(points[point], domains)] + (f", {adversaries[point]}" if several else "")
        worst = [float(row["worst MSE"]) for row in histories[point]]
        axes.plot(range(len(worst)), worst, color=COLORS[index % len(COLORS)], label=name)
    axes.set(
        xlabel="training step",
        ylabel="validation MSE (target scaled to [0, 1])",
        yscale="log",
        title="worst case certified" if several else f"worst case certified against {adversaries[order[0]]}",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    plain(axes)
    return save(figure, path)


def _adversary(row: Row) -> str:
    """Return the strengths of a point's adversary that are not zero, as in ``n = 200, ε = 0.01``."""
    strengths = {name: row.get(f"adversary.{name}") for name in ("n", "epsilon", "nu", "kappa")}
    return ", ".join(f"{SYMBOLS.get(name, name)} = {value}" for name, value in strengths.items() if float(value or 0))
