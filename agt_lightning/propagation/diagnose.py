"""Where bounds become wide, wrong or infinite: a report on the bounds of one batch, call by call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import Adversary
from agt_lightning.capture import Call
from agt_lightning.capture.dropout import RandomState
from agt_lightning.interval import Interval
from agt_lightning.propagation.ibp import evaluate, propagate_backward
from agt_lightning.propagation.methods import Method
from agt_lightning.propagation.objective import BoundedObjective, rounded
from agt_lightning.rounding import training_roundoff
from agt_lightning.rules import Value
from agt_lightning.rules.base import address, name_of

Run = tuple[nn.Module | Mapping[str, Tensor], object]
"""A training's parameters, as a module or by name, and a batch; an adversary may have changed both."""


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
    """

    call: Call
    width: float
    growth: float | None
    gradient_width: float | None
    excess: Excess | None

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
        call, excess = report.call, report.excess
        numbers = (report.width, report.growth, report.gradient_width, None if excess is None else excess.distance)
        note = ""
        if report is self.first_outside and excess is not None:
            note = f"← first value outside, at {excess.index}"
        elif report is self.first_infinite:
            note = "← first bound that is NaN or infinite"
        cells = ("-" if number is None else f"{number:.1e}" for number in numbers)
        return (name_of(call).removeprefix("aten."), call.module, call.source, *cells, note)


_HEADER = ("call", "module", "line", "mean width", "growth", "gradient", "outside", "")


def diagnose(
    bounded: BoundedObjective,
    module: nn.Module,
    batch: object,
    box: Mapping[str, Interval],
    run: Run | None = None,
    *,
    adversary: Adversary | None = None,
    method: Method = "ibp",
    state: RandomState | None = None,
) -> Diagnosis:
    """Report how wide the bounds of a batch are at each call, and where a run leaves them.

    Costs about three certified passes over the batch; nothing is changed.

    Args:
        bounded: the captured loss of the batch, such as ``engine.objective(batch)``, without problems.
        module: owner of the buffers; of the parameters too, as far as types are concerned.
        batch: a batch of the captured shapes.
        box: bounds by parameter name, such as ``engine.box``.
        run: parameters and a batch that the bounds should contain; the batch has the captured shapes. None to look at
            the bounds alone.
        adversary: bound the batch as poisoned by it, every sample. None to bound the batch as it is.
        method: how bounds are propagated forward.
        state: the generators' state when the training step began; needed for dropout alone.

    Returns:
        A report with one entry for each call with bounds. The run is compared with bounds that are widened by the
        rounding of the module's floating point type.

    Raises:
        UncertifiableError: if some call cannot be bounded.
        UnsoundBoundError: if two enclosures of a call's result do not meet.

    Example:
        >>> from agt_lightning import AbstractGradientEngine, BoundedAdversary
        >>> layer = nn.Linear(2, 1)
        >>> engine = AbstractGradientEngine(layer, lambda m, x: m(x).square().mean(), BoundedAdversary(n=1, epsilon=1))
        >>> batch = torch.ones(4, 2)
        >>> engine.step([batch], torch.optim.SGD(layer.parameters(), lr=0.1))
        >>> report = diagnose(engine.objective(batch), layer, batch, engine.box, run=(layer, batch))
        >>> report.first_outside is None, report.widest_growth.call.module
        (True, '')
    """
    dtype = next(iter(box.values())).dtype
    inputs = bounded.inputs(module, batch, box, dtype, state)
    if adversary is not None:
        inputs = bounded.poisoned(inputs, adversary, None)
    values = bounded.forward(inputs, method=method)
    gradients: dict[str, Interval] = {}
    seeds = bounded.seeds(values, bounded.size(batch), dtype)
    propagate_backward(bounded.program, values, seeds, lambda call, bounds: gradients.update({call.name: bounds}))
    excesses: Mapping[str, Excess] = {}
    if run is not None:
        program_type = next(module.parameters()).dtype
        widened = rounded(bounded, program_type).forward(_widened(inputs, program_type), method=method)
        excesses = _excesses(widened, _run(bounded, module, run, dtype, state))
    calls = tuple(
        CallReport(
            call,
            width=_mean_width(bounds),
            growth=_growth(bounds, [values[name] for name in call.inputs]),
            gradient_width=_mean_width(gradients[call.name]) if call.name in gradients else None,
            excess=excesses.get(call.name),
        )
        for call in bounded.program.graph.calls
        if call.name in bounded.program.rules and isinstance(bounds := values.get(call.name), Interval)
    )
    names: Mapping[str, str | int] = {**bounded.parameters, **bounded.program.graph.leaves}
    return Diagnosis(calls, {names[name]: excess for name, excess in excesses.items() if name in names})


def _widened(inputs: Mapping[str, Value], dtype: torch.dtype) -> dict[str, Value]:
    """Return the inputs with what rounding can do to a training in ``dtype`` added to bounds that are no points."""

    def widened(value: Value) -> Value:
        if not isinstance(value, Interval) or value.is_point or not value.shape.numel():
            return value
        slack = training_roundoff(dtype) * float(value.magnitude.max())
        return Interval.trusted(value.lower - slack, value.upper + slack)

    return {name: widened(value) for name, value in inputs.items()}


def _run(
    bounded: BoundedObjective, module: nn.Module, run: Run, dtype: torch.dtype, state: RandomState | None
) -> dict[str, Value]:
    """Compute the values of a run by the program's own operations, without rules."""
    owner, batch = run
    parameters = dict(owner.named_parameters()) if isinstance(owner, nn.Module) else owner
    points = {name: Interval.point(parameter.detach().to(dtype)) for name, parameter in parameters.items()}
    values = bounded.inputs(module, batch, points, dtype, state)
    for call in bounded.program.graph.calls:
        if call.name not in bounded.skipped:
            values[call.name] = evaluate(call, values, dtype)
    return values


def _excesses(bounds: Mapping[str, Value], values: Mapping[str, Value]) -> dict[str, Excess]:
    """Return how far the values lie outside of their bounds, by name, for those that do."""
    found: dict[str, Excess] = {}
    for name, interval in bounds.items():
        value = values[name]
        if not (isinstance(interval, Interval) and isinstance(value, Interval) and value.shape.numel()):
            continue
        excess = torch.maximum(interval.lower - value.lower, value.lower - interval.upper)
        excess = torch.where(excess.isnan(), torch.inf, excess)
        worst = excess.argmax()
        if excess.flatten()[worst] > 0:
            index = tuple(int(i) for i in torch.unravel_index(worst, excess.shape))
            found[name] = Excess(float(excess[index]), index)
    return found


def _growth(bounds: Interval, inputs: list[Value]) -> float | None:
    """Return the mean width relative to the widest input; None if all inputs are points."""
    widest = max((_mean_width(value) for value in inputs if isinstance(value, Interval)), default=0.0)
    return _mean_width(bounds) / widest if widest > 0 else None


def _mean_width(bounds: Interval) -> float:
    return 0.0 if bounds.is_point else float(bounds.width.mean())
