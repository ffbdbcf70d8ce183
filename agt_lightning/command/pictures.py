"""Where the marks of a page's pictures are; the template draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

KINDS = ("certified", "nominal", "best")
"""Values of a metric: of the worst run, of the trained module, and of the best run."""


_LARGEST = 1e300
"""Of numbers that are drawn where they are; larger ones count as infinite, so that no arithmetic overflows."""


def _is_drawn(value: float) -> bool:
    return abs(value) <= _LARGEST


@dataclass(frozen=True)
class Axis:
    """An axis from a value to another one, in pixels.

    Args:
        low: value at its start.
        high: value at its end.
        start: pixel of its start.
        end: pixel of its end.
    """

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the pixel of a value; those beyond an end, infinities among them, are drawn at the end.

        Example:
            >>> Axis(0.0, 2.0, 10.0, 110.0).at(0.5), Axis(0.0, 2.0, 10.0, 110.0).at(float("inf"))
            (35.0, 110.0)
        """
        inside = min(max(value, self.low), self.high)
        return round(self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and labels of round values on the axis.

        Example:
            >>> [label for _, label in Axis(0.0, 1.0, 0.0, 1.0).ticks]
            ['0', '0.2', '0.4', '0.6', '0.8', '1']
        """
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [(self.at(count * step), f"{count * step:.6g}") for count in range(first, last + 1)]


@dataclass(frozen=True)
class Strip:
    """One metric on a line: marks of its values, and the range in which every run of the adversary is.

    Args:
        axis: of the values.
        marks: pixel by kind; kinds without a value are left out.
        span: pixels between which all runs are.
        infinite: whether a value is infinite and drawn at the end.
    """

    axis: Axis
    marks: Mapping[str, float]
    span: tuple[float, float]
    infinite: bool


@dataclass(frozen=True)
class Curve:
    """Values of a metric over n.

    Args:
        across: the axis of n.
        upward: the axis of the values.
        points: pixels of the values of each kind, from small to large n; infinite ones are at the end of their axis.
    """

    across: Axis
    upward: Axis
    points: Mapping[str, Sequence[tuple[float, float]]]

    def line(self, kind: str) -> list[tuple[float, float]]:
        """Return the line through the points of a kind; that of bounds has steps.

        A certificate for n holds for every smaller n, so that between two n the value of the larger one is certified:
        a straight line between them would show what nothing proves.

        Example:
            >>> axis = Axis(0.0, 1.0, 0.0, 1.0)
            >>> Curve(axis, axis, {"certified": [(1.0, 5.0), (2.0, 9.0)]}).line("certified")
            [(1.0, 5.0), (1.0, 9.0), (2.0, 9.0)]
        """
        points = self.points[kind]
        if kind == "nominal":
            return list(points)
        corners = [[(x, y), (x, following)] for (x, y), (_, following) in pairwise(points)]
        return [*(point for corner in corners for point in corner), *points[-1:]]


def strip(values: Mapping[str, float | None]) -> Strip | None:
    """Return the picture of a metric; None if it has no finite value.

    Args:
        values: by kind.
    """
    given = {kind: value for kind in KINDS if (value := values.get(kind)) is not None}
    if not any(map(_is_drawn, given.values())):
        return None
    axis = _axis(list(given.values()), 20.0, 500.0)
    marks = {kind: axis.at(value) for kind, value in given.items()}
    return Strip(axis, marks, (min(marks.values()), max(marks.values())), not all(map(_is_drawn, given.values())))


def curve(points: Sequence[tuple[int, Mapping[str, float | None]]]) -> Curve | None:
    """Return the picture of a metric over n; None if fewer than two n have a certified value, or no value is finite.

    Args:
        points: n, and values by kind, in order of n.
    """
    given = {kind: [(n, value) for n, values in points if (value := values.get(kind)) is not None] for kind in KINDS}
    every = [value for line in given.values() for _, value in line]
    if len({n for n, _ in given["certified"]}) < 2 or not any(map(_is_drawn, every)):
        return None
    across = Axis(0.0, float(max(n for n, _ in points)), 60.0, 540.0)
    upward = _axis(every, 240.0, 20.0)
    placed = {kind: [(across.at(n), upward.at(value)) for n, value in line] for kind, line in given.items() if line}
    return Curve(across, upward, placed)


def _axis(values: Sequence[float], start: float, end: float) -> Axis:
    """Return an axis with 0 and all finite values; up to 1 where these are shares."""
    finite = [value for value in values if _is_drawn(value)]
    low, high = min(0.0, *finite), max(0.0, *finite)
    if low == 0 and 0.1 < high <= 1:
        return Axis(0.0, 1.0, start, end)
    if high - low < 1 / _LARGEST:
        return Axis(0.0, 1.0, start, end)
    step = _round_step((high - low) / 5)
    return Axis(math.floor(low / step) * step, math.ceil(high / step) * step, start, end)


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is no less than a number."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
