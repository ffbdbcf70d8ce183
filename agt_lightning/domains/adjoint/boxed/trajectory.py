"""A training recorded with boxes, as a set of parameters that certificates bound outputs over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import blake2b
from typing import ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture import Graph
from agt_lightning.domains.adjoint.boxed.geometry import BoxedGeometry
from agt_lightning.domains.adjoint.boxed.head_box import HeadBox, ScalarHead, basis_of, norm_of
from agt_lightning.domains.adjoint.boxed.outputs import BoxedOutputs
from agt_lightning.domains.adjoint.boxed.replay import BoxedStep, ScalarDirections, displacements
from agt_lightning.domains.adjoint.one_hidden import OneHiddenStep
from agt_lightning.domains.adjoint.recorded_trajectory import match_recorded
from agt_lightning.domains.adjoint.recorder import TrajectoryRecorder
from agt_lightning.domains.ball.layers import Layer
from agt_lightning.domains.head import Head
from agt_lightning.domains.losses import HeadLoss
from agt_lightning.interval import Interval

FEW_STEPS = 8
"""Trainings with no more steps than this have their boxes cut by adjoints: the work grows with the square of that."""

_MOST_ENTRIES = 4096
"""Heads with more weights than this have only the boxes of the box domain: each weight takes a replay."""

_MEMORY = 2**28
"""Bytes of the directions that are replayed together."""


@dataclass(frozen=True, eq=False)
class BoxedTrajectory:
    """All parameters that a poisoned run of a recorded training could have ended in.

    Bounds on outputs take a replay of the whole training, with a progress bar on a terminal; those of the same inputs
    are kept. A training of few steps is first replayed for each parameter and each training sample, before every step:
    the boxes that result are far smaller than those of the box domain.

    Args:
        recorder: the training, with the box before every step and after the last.
        loss: of one sample.
        run: floating point type of the runs; None for runs in real arithmetic.

    Reference:
        docs/theory.md, section 15.
    """

    recorder: TrajectoryRecorder
    loss: HeadLoss
    run: torch.dtype | None
    _found: dict[bytes, Interval] = field(default_factory=dict)

    costly: ClassVar[bool] = True

    def head_bounds(
        self, graph: Graph, names: Mapping[str, str], module: nn.Module, dtype: torch.dtype
    ) -> BoxedHead | None:
        """Return bounds for the recorded layers in a graph; None if the graph does not end in them.

        Args:
            graph: a captured graph of the module.
            names: names of parameters in the module by value name.
            module: owner of the parameters.
            dtype: has no effect; the replay computes in float64.

        Raises:
            UnsoundBoundError: if the module has other parameters than the record ends in.
        """
        match = match_recorded(self.recorder, graph, names, module)
        return None if match is None else BoxedHead(match[0], self, match[1])

    @property
    def outputs(self) -> int:
        """K, 1 or 2."""
        return len(self.recorder.layers(-1)[1].weight)

    @cached_property
    def steps(self) -> tuple[BoxedStep, ...]:
        """The steps, first one first."""
        return self._everything[0]

    @cached_property
    def box(self) -> HeadBox:
        """The box after the last step."""
        return self._everything[1]

    @cached_property
    def _everything(self) -> tuple[tuple[BoxedStep, ...], HeadBox]:
        whole = list(self.recorder.backward(self.loss, self.run))[::-1]
        cuts, steps = len(whole) <= FEW_STEPS and self._entries <= _MOST_ENTRIES, list[BoxedStep]()
        first = whole[0].analysis.data.samples.inputs
        basis = basis_of(torch.nn.functional.pad(first, (0, 1), value=1.0))
        for number, step in enumerate(whole):
            assert isinstance(step.analysis, OneHiddenStep)
            box = self._box_before(number, basis, steps if cuts else [])
            head = ScalarHead.of(self._layers(number))
            geometry = BoxedGeometry(step.analysis, head, box)
            if cuts and steps:
                inputs = Interval.point(step.analysis.data.samples.inputs)
                outputs = self._outputs(number, box, step.analysis.radius, inputs)
                reach = outputs.reach(self._replayed(steps, outputs.directions, f"outputs before step {number + 1}"))
                geometry = BoxedGeometry(step.analysis, head, box, reach.magnitude)
            steps.append(BoxedStep(geometry, step.rate, step.decay, step.rounding))
        return tuple(steps), self._box_before(len(whole), basis, steps if cuts else [])

    def _layers(self, number: int) -> tuple[Layer, Layer]:
        first, second = self.recorder.layers(number)
        return first, second

    @property
    def _entries(self) -> int:
        return sum(each.weight.numel() for each in self.recorder.layers(-1))

    def _outputs(self, number: int, box: HeadBox, radius: float, inputs: Interval) -> BoxedOutputs:
        arithmetic = Arithmetic(self.run, torch.float64)
        return BoxedOutputs(self._layers(number), box, radius, arithmetic, inputs)

    def _box_before(self, number: int, basis: Tensor, steps: list[BoxedStep]) -> HeadBox:
        """Return the box before a step, cut by replays of the steps before it."""
        head = ScalarHead.of(self._layers(number))
        box = HeadBox.of(head, self.recorder.widths[number], basis)
        if not steps:
            return box
        directions = _coordinates(head, basis)
        reach = self._replayed(steps, directions, f"parameters before step {number + 1}").magnitude
        rows, last = reach.split([head.first.numel(), len(head.second)])
        return box.cut(rows.reshape(head.first.shape), last)

    def _replayed(self, steps: Sequence[BoxedStep], directions: ScalarDirections, title: str) -> Interval:
        size = max(1, _MEMORY // (16 * (directions.first[0].numel() + directions.second.shape[1])))
        parts = []
        with tqdm(total=len(directions) * len(steps), desc=title, unit="step", leave=False, disable=None) as bar:
            for start in range(0, len(directions), size):
                chunk = directions[start : start + size]
                parts.append(displacements(steps, chunk, progress=partial(_advance, bar, len(chunk))))
        return Interval.cat(parts)

    def final_outputs(self, inputs: Interval) -> BoxedOutputs:
        """Return the output after the last step for features that enter the head, as runs compute them, (Q, d)."""
        given = inputs.to(dtype=torch.float64, device=torch.device("cpu"))
        radius = norm_of(self.recorder.widths[-1])
        return self._outputs(-1, self.box, radius, given)

    def output(self, inputs: Interval) -> Interval:
        """Bound the output of the head in every run, or ``f₁ - f₀`` of two classes, (Q,).

        Args:
            inputs: features that enter the head, as runs compute them, (Q, d).
        """
        key = blake2b(digest_size=16)
        for tensor in (inputs.lower, inputs.upper):
            key.update(tensor.detach().double().cpu().contiguous().numpy().tobytes())
        if key.digest() not in self._found:
            asked = self.final_outputs(inputs)
            reach = asked.reach(self._replayed(self.steps, asked.directions, f"{inputs.shape[0]} outputs"))
            bound = Interval.trusted(asked.nominal + reach.lower, asked.nominal + reach.upper)
            self._found[key.digest()] = bound.widened(2.0**-50 * bound.magnitude)
        return self._found[key.digest()]


@dataclass(frozen=True, eq=False)
class BoxedHead:
    """A recorded training of the layers that a captured graph ends in.

    Args:
        head: the layers, by the graph's names.
        recorded: the training.
        dependent: names of all values of the graph that depend on them.
    """

    head: Head
    recorded: BoxedTrajectory
    dependent: frozenset[str]

    def bound_values(self, inputs: Interval) -> dict[str, Interval]:
        """Bound the outputs, by value name; those of two classes by the box alone, for their margins are what counts.

        Args:
            inputs: features that enter the head, (b, d), as runs compute them.
        """
        if self.recorded.outputs == 1:
            return {self.head.output: self._like(self.recorded.output(inputs), inputs).rearranged(lambda x: x[:, None])}
        bounds = self.recorded.final_outputs(inputs).each(self.recorded.recorder.widths[-1])
        return {self.head.output: self._like(bounds, inputs)}

    def margins(self, inputs: Interval, target: Tensor) -> Interval:
        """Bound ``f_target - f_k`` for both classes k, (b, 2); zero for the target itself.

        Args:
            inputs: features that enter the head, (b, d), as runs compute them.
            target: integers (b,).
        """
        difference = self.recorded.output(inputs)
        second = (target.cpu() == 1)[:, None]
        margin = torch.where(second, difference.lower[:, None], -difference.upper[:, None])
        largest = torch.where(second, difference.upper[:, None], -difference.lower[:, None])
        own = torch.nn.functional.one_hot(target.long().cpu(), 2).bool()
        lower, upper = (torch.where(own, 0.0, bound.expand(-1, 2)) for bound in (margin, largest))
        return self._like(Interval.trusted(lower, upper), inputs)

    def _like(self, bounds: Interval, inputs: Interval) -> Interval:
        return bounds.to(dtype=inputs.dtype, device=inputs.device)


def _advance(bar: tqdm, count: int, step: int) -> None:
    bar.update(count)


def _coordinates(head: ScalarHead, basis: Tensor) -> ScalarDirections:
    """Return the directions of ``W Q`` and of v, one after the other."""
    units, inputs = head.first.shape
    count = units * inputs
    first = torch.zeros(count + len(head.second), units, inputs, dtype=torch.float64)
    second = torch.zeros(count + len(head.second), len(head.second), dtype=torch.float64)
    first[:count] = (torch.eye(units, dtype=torch.float64)[:, None, :, None] * basis.T[None, :, None, :]).reshape(
        count, units, inputs
    )
    second[count:] = torch.eye(len(head.second), dtype=torch.float64)
    return ScalarDirections(first, second)
