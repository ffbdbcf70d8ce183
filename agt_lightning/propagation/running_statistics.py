"""Running statistics of batch normalization: buffers that each step moves towards those of its batch.

``r⁺ = (1 - m) r + m s`` for the mean or the unbiased variance s of the batch (docs/theory.md, eq. (16.11)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture.batch_statistics import RUNNING, Running
from agt_lightning.interval import Interval, require_inside
from agt_lightning.propagation.program import Program
from agt_lightning.rounding import Floats
from agt_lightning.rules import Value
from agt_lightning.rules.batch_statistics import BatchRows, BatchStatistics, Moments
from agt_lightning.rules.rounded import Rounded

_ROUNDINGS = 16
"""Roundings of a statistic besides its sums, and of the update."""


@dataclass(frozen=True)
class StatisticsUpdate:
    """How one call moves its two buffers.

    Args:
        running: names of the buffers, and the momentum.
        mean: bounds on the means of the batch, (c,).
        variance: bounds on its unbiased variances, (c,).
    """

    running: Running
    mean: Interval
    variance: Interval

    @property
    def by_name(self) -> dict[str, Interval]:
        """The statistic that each buffer is moved towards, by the buffer's name."""
        return {self.running.mean: self.mean, self.running.variance: self.variance}


def running_of(program: Program) -> dict[str, Running]:
    """Return the buffers that calls of a program move, by name of the call, in the order of the calls."""
    mixing = [call for call in program.graph.calls if call.name in program.mixing]
    return {call.name: running for call in mixing if isinstance(running := call.arguments.get(RUNNING), Running)}


def statistics_update(
    program: Program, name: str, running: Running, inputs: Sequence[Value], rows: BatchRows
) -> StatisticsUpdate:
    """Bound the statistics of a batch in every run, as runs compute them if the program's rules cover that.

    Args:
        program: the program.
        name: of the call.
        running: the buffers that it moves.
        inputs: bounds on its inputs, with the rows of both passes.
        rows: which rows these are.
    """
    rule, site = program.among(name, rows), program.sites[name]
    arithmetic = rule.arithmetic(site) if isinstance(rule, Rounded) else None
    exact = rule.rule if isinstance(rule, Rounded) else rule
    assert isinstance(exact, BatchStatistics)
    return _update(running, exact.moments(site, inputs, arithmetic))


def evaluated_update(running: Running, x: Tensor, dtype: torch.dtype) -> StatisticsUpdate:
    """Bound the statistics of a batch that is the same in every run, as runs compute them.

    Args:
        running: the buffers that they move.
        x: the batch, (b, c, ...), in the type of the run.
        dtype: floating point type to compute in.
    """
    point = Interval.point(x.to(dtype).reshape(*x.shape[:2], -1))
    return _update(running, Moments(point, BatchRows(len(x)), Arithmetic(x.dtype, dtype)))


def _update(running: Running, moments: Moments) -> StatisticsUpdate:
    arithmetic = moments.arithmetic
    mean, variance = moments.average, moments.variance_of_all
    unbiased = variance.scaled(moments.entries / (moments.entries - 1))
    if arithmetic is not None:
        mean = arithmetic.outward(mean.widened(moments.relative * moments.size), _ROUNDINGS)
        unbiased = arithmetic.outward(unbiased, _ROUNDINGS)
    return StatisticsUpdate(running, mean[:, 0], unbiased[:, 0])


def with_trained(name: str, bounds: Interval, trained: Tensor, floats: Floats) -> Interval:
    """Return bounds on a buffer that contain the one of training: without tolerance if runs are in floating point.

    Args:
        name: of the buffer.
        bounds: on it after a step.
        trained: as training has it.
        floats: which runs the bounds contain; of those in real arithmetic training's own is none.

    Raises:
        UnsoundBoundError: if it lies outside and is one of the runs that the bounds must contain.
    """
    value = trained.detach().to(dtype=bounds.dtype, device=bounds.device)
    if floats == "run":
        require_inside(f"buffer {name}", value, bounds, 0.0)
        return bounds
    return bounds.hull(Interval.point(value))


def followed(
    before: Mapping[str, Interval],
    updates: Sequence[StatisticsUpdate],
    types: Mapping[str, torch.dtype],
    floats: Floats | None,
) -> dict[str, Interval]:
    """Return bounds on buffers after some updates, by name; those that none moves are left out.

    Args:
        before: bounds on all of them before.
        updates: in the order in which training makes them.
        types: of the buffers.
        floats: whether runs compute in these types, or in real arithmetic.
    """
    after: dict[str, Interval] = {}
    for update in updates:
        for name, statistic in update.by_name.items():
            old, momentum = after.get(name, before[name]), update.running.momentum
            arithmetic = Arithmetic(types[name] if floats == "run" else None, statistic.dtype)
            # A device may take 1 - m from an m that is rounded to its type, which is off by far more than 1 - m is.
            rounded = abs(momentum) * arithmetic.relative(_ROUNDINGS) * old.magnitude
            kept = arithmetic.outward(old.scaled(1 - momentum), _ROUNDINGS).widened(rounded)
            moved = arithmetic.outward(statistic.scaled(momentum), _ROUNDINGS)
            after[name] = arithmetic.clear_of_underflow(kept + moved)
    return after
