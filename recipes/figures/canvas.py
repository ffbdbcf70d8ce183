"""A figure without a display, and its file."""

from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
"""Colors of Okabe and Ito, which color-blind readers can tell apart."""

COLORS = (VERMILION, BLUE, GREEN, PURPLE)
_DPI = 150
_CHARACTERS = 10  # of a heading, to an inch


def new_figure(width: float, height: float) -> Figure:
    """Return a blank figure of ``width`` × ``height`` inches, outside of pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def heading(figure: Figure, text: str) -> None:
    """Write ``text`` above all axes, in as many lines as the figure's width needs."""
    figure.suptitle(fill(text, int(_CHARACTERS * figure.get_figwidth())))


def plain(axes: Axes) -> None:
    """Hide the upper and right side of the frame."""
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> Path:
    """Write ``figure`` to ``path``; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    return path
