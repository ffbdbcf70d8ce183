"""Certified accuracy of several defenses against flipped labels, as a picture and as a table (figure 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from recipes.baselines.defense import Defense
from recipes.figures.canvas import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, new_figure, plain, save

AUTHORS = {0: 0.78, 5: 0.735, 10: 0.655, 20: 0.53, 40: 0.30, 60: 0.19, 100: 0.05}
"""Certified accuracy by flips at each step, of the authors' own notebook."""

PUBLISHED = {"DPA, k = 1200": 448, "DPA, k = 3000": 509, "SS-DPA, k = 1200": 485}
"""Flips of the whole data set at which certified accuracy is one half (Levine and Feizi), of convolutional networks."""


@dataclass(frozen=True)
class Frame:
    """What picture and table show, besides the defenses.

    Args:
        title: of the picture.
        largest: number of flips up to which curves are drawn.
        at: numbers of flips whose certified accuracy is in the table.
        authors: certified accuracy by flips at each step, to quote; empty for none.
        published: names, and flips of the whole data set at which certified accuracy is one half, to quote.
    """

    title: str
    largest: int
    at: Sequence[int]
    authors: Mapping[int, float]
    published: Sequence[tuple[str, int]]


FIGURE_5 = Frame(
    title="Certified accuracy on MNIST against n flipped labels of 60 000",
    largest=600,
    at=(0, 20, 100, 300, 600),
    authors=AUTHORS,
    published=tuple(PUBLISHED.items()),
)
"""The frame of the paper's figure."""

_COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#999999", "#F0E442", "black")
_DASHES = {"each step": "-", "whole data set": "--"}


def draw_label_defenses(defenses: Sequence[Defense], path: Path, frame: Frame = FIGURE_5) -> Path:
    """Draw how certified accuracy falls with the number of flipped labels, one curve per defense.

    Args:
        defenses: at least one.
        path: the file to write.
        frame: what is shown besides.

    Returns:
        ``path``.
    """
    figure = new_figure(10.5, 5.2)
    axes = figure.subplots()
    for index, defense in enumerate(defenses):
        _draw_curve(axes, defense, _COLORS[index % len(_COLORS)], frame.largest)
    if frame.authors:
        quoted = list(frame.authors.values())
        axes.plot(list(frame.authors), quoted, color="black", linestyle=":", marker=".", label="AGT, the authors'")
    for name, median in frame.published:
        axes.plot(median, 0.5, marker="o", markerfacecolor="none", color="gray", linestyle="")
        axes.annotate(name, (median, 0.5), (4, 6), textcoords="offset points", fontsize=7, color="gray", rotation=30)
    axes.set(
        xlabel="flipped training labels, n", ylabel="fraction of test samples", xlim=(0, frame.largest), ylim=(0, 1)
    )
    axes.set_title(frame.title, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(
        handles=_legend(axes, frame), frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small"
    )
    plain(axes)
    return save(figure, path)


def _draw_curve(axes: Axes, defense: Defense, color: str, largest: int) -> None:
    n, values = defense.flips.steps()
    axes.step(
        [*n, n[-1], max(n[-1], largest)],
        [*values, 0.0, 0.0],
        where="pre",
        color=color,
        linestyle=_DASHES[defense.budget],
        label=defense.flips.label,
    )


def _legend(axes: Axes, frame: Frame) -> list[Line2D]:
    """Return all curves, then the meaning of lines and markers: the threat models are not the same."""
    curves = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    meanings = [
        Line2D([], [], color="gray", linestyle="-", label="n labels at each step"),
        Line2D([], [], color="gray", linestyle="--", label="n labels of the whole data set"),
    ]
    if frame.authors:
        meanings.append(Line2D([], [], color="black", linestyle=":", label="published, n labels at each step"))
    if frame.published:
        hollow = {"marker": "o", "markerfacecolor": "none", "linestyle": ""}
        meanings.append(Line2D([], [], color="gray", label="published, whole data set", **hollow))
    return [*curves, Line2D([], [], linestyle="", label=" "), *meanings]


def half(defense: Defense) -> int:
    """Return the largest n at which certified accuracy is at least one half; -1 if there is none."""
    flips = defense.flips.flips.where(defense.flips.correct, -1)
    return max(-1, int(flips.sort(descending=True).values[(len(flips) + 1) // 2 - 1]))


def markdown(defenses: Sequence[Defense], at: Sequence[int] = FIGURE_5.at) -> str:
    """A row for each defense: accuracy without flips, certified accuracy, and how many flips half of it withstands.

    Args:
        defenses: at least one.
        at: numbers of flips.
    """
    header = ["defense", "n counts labels of", "accuracy", *(f"n = {n}" for n in at), "n at one half", "median flips"]
    lines = [header, ["---"] * len(header), *(_row(defense, at) for defense in defenses)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(defense: Defense, at: Sequence[int]) -> list[str]:
    flips = defense.flips
    certified = [f"{flips.certified_accuracy(n):.3f}" for n in at]
    return [flips.label, defense.budget, f"{flips.accuracy:.3f}", *certified, str(half(defense)), f"{flips.median:g}"]
