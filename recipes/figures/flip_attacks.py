"""Accuracy after random label flips, between certified worst and best (figure 9)."""

from pathlib import Path

import pandas as pd

from recipes.figures.canvas import BLUE, PURPLE, VERMILION, new_figure, plain, save

_STYLES = {"random flips": (BLUE, "o"), "pneumonia to normal": (PURPLE, "^")}


def draw_flip_attacks(rows: pd.DataFrame, path: Path) -> Path:
    """Draw the accuracy of attacked models as points, the certified range as a band.

    Args:
        rows: what ``accuracies.csv`` of `recipes.attacks.flips` has.
        path: the file to write.

    Returns:
        ``path``.
    """
    figure = new_figure(7.5, 4.4)
    axes = figure.subplots()
    bounds = rows[rows["kind"] == "bounds"].sort_values("n")
    name = f"certified by {bounds['name'].iloc[0]}"
    axes.fill_between(bounds["n"], bounds["lower"], bounds["upper"], color=VERMILION, alpha=0.18, label=name)
    axes.plot(bounds["n"], bounds["accuracy"], color="black", label="no poison")
    for kind, (color, marker) in _STYLES.items():
        attacks = rows[rows["name"] == kind]
        axes.plot(attacks["n"], attacks["accuracy"], marker, color=color, markersize=4, label=kind)
    axes.set(xlabel="flipped labels of each step, n", ylabel="test accuracy", ylim=(0, 1.02))
    axes.set_title("Fine-tuning on PneumoniaMNIST (stand-in for OCTMNIST)", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    plain(axes)
    return save(figure, path)
