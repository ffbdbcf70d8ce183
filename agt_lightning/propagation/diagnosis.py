"""The report of `diagnose`: bounds of one batch call by call, and where a run leaves them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from agt_lightning.capture import Call
from agt_lightning.rules.base import address, name_of


@dataclass(frozen=True)
class Excess:
    """How far a value of a run lies outside of its bounds.

    Args:
        distance: the largest over all elements; infinite if the value or its bounds are NaN.
        index: of that element, its sample first.
    """

    distance: float
    index: tuple[int, ...]


@dataclass(frozen=True)
class CallReport:
    """Bounds on the result of one call.

    Args:
        call: the call.
        width: mean width, in units of the result.
        growth: ``width`` over that of the widest input, parameters included. None if all inputs are points.
        gradient_width: mean width of the gradient of a sample's loss with respect to the result. None if no gradient
            passes through it.
        excess: of the result in the run. None if it lies inside, up to rounding, or if there is no run.
        gradient_excess: the same of that gradient.
    """

    call: Call
    width: float
    growth: float | None
    gradient_width: float | None
    excess: Excess | None
    gradient_excess: Excess | None

    def __str__(self) -> str:
        """Return the call's op, line and submodule."""
        return address(self.call)


@dataclass(frozen=True)
class Diagnosis:
    """Bounds of one batch in the order of the program; ``print`` shows a table.

    Args:
        calls: one report for each call with bounds.
        inputs: excess of the run's parameters, by name, and of its batch entries, by position, beyond rounding. If
            there is any, the bounds do not claim to contain the run.
    """

    calls: tuple[CallReport, ...]
    inputs: Mapping[str | int, Excess] = field(default_factory=dict)

    @property
    def first_outside(self) -> CallReport | None:
        """The first call whose result in the run leaves its bounds. Its rule is wrong if `inputs` is empty."""
        return next((report for report in self.calls if report.excess is not None), None)

    @property
    def first_gradient_outside(self) -> CallReport | None:
        """The first call in the backward pass, hence the last of the program, whose gradient in the run is outside.

        The gradient comes from the calls that read the result: if all values are inside, the backward rule of one of
        them is wrong.
        """
        return next((report for report in reversed(self.calls) if report.gradient_excess is not None), None)

    @property
    def first_infinite(self) -> CallReport | None:
        """The call where NaN or infinity begins: the first forward; if there is none, the last whose gradient has it.

        The gradient comes from the calls that read the result.
        """
        forward = (report for report in self.calls if not math.isfinite(report.width))
        backward = (report for report in reversed(self.calls) if not math.isfinite(report.gradient_width or 0.0))
        return next(forward, None) or next(backward, None)

    @property
    def widest_growth(self) -> CallReport | None:
        """The call whose bounds are widest relative to those of its inputs."""
        grown = [report for report in self.calls if report.growth is not None and not math.isnan(report.growth)]
        return max(grown, key=lambda report: report.growth or 0.0, default=None)

    def __str__(self) -> str:
        """Return a table with a line for each call, below the inputs of the run that are outside."""
        rows = [_HEADER, *(self._row(report) for report in self.calls)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        outside = [
            f"{f'batch entry {name}' if isinstance(name, int) else name} of the run lies outside of its bounds by "
            f"{excess.distance:.1e} at {excess.index}"
            for name, excess in self.inputs.items()
        ]
        return "\n".join([*outside, *(line.rstrip() for line in lines)])

    def _row(self, report: CallReport) -> tuple[str, ...]:
        call, excess, gradient_excess = report.call, report.excess, report.gradient_excess
        distances = [None if outside is None else outside.distance for outside in (excess, gradient_excess)]
        numbers = (report.width, report.growth, distances[0], report.gradient_width, distances[1])
        note = ""
        if report is self.first_outside and excess is not None:
            note = f"← first value outside, at {excess.index}"
        elif self.first_outside is None and report is self.first_gradient_outside and gradient_excess is not None:
            note = f"← first gradient outside, at {gradient_excess.index}: by a call that reads this one"
        elif report is self.first_infinite:
            note = "← first bound that is NaN or infinite"
        cells = ("-" if number is None else f"{number:.1e}" for number in numbers)
        return (name_of(call).removeprefix("aten."), call.module, call.source, *cells, note)


_HEADER = ("call", "module", "line", "mean width", "growth", "outside", "gradient", "outside", "")
