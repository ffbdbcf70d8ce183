"""A recorded training as a set of parameters that certificates bound outputs over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture import Graph
from agt_lightning.domains.adjoint.directions import Directions
from agt_lightning.domains.adjoint.output_bounds import output_combinations
from agt_lightning.domains.adjoint.recorder import TrajectoryRecorder
from agt_lightning.domains.adjoint.replay import displacements
from agt_lightning.domains.head import Head, match_trained
from agt_lightning.domains.losses import HeadLoss
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval

_MEMORY = 2**29
"""Bytes of the directions that are replayed together."""


@dataclass(frozen=True, eq=False)
class RecordedTrajectory:
    """All parameters that a poisoned run of a recorded training could have ended in.

    Bounds on outputs take a replay of the whole training, with a progress bar on a terminal; those of the same inputs
    are kept. Give many inputs at once: each replay evaluates every batch anew.

    Args:
        recorder: the training.
        radius: R of the ball after the last step.
        loss: of one sample.
        run: floating point type of the runs; None for runs in real arithmetic.
    """

    recorder: TrajectoryRecorder
    radius: float
    loss: HeadLoss
    run: torch.dtype | None
    _found: dict[bytes, Interval] = field(default_factory=dict)

    costly: ClassVar[bool] = True

    def head_bounds(
        self, graph: Graph, names: Mapping[str, str], module: nn.Module, dtype: torch.dtype
    ) -> HeadTrajectory | None:
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
        return None if match is None else HeadTrajectory(match[0], self, match[1])

    def combinations(self, inputs: Interval, rows: Tensor) -> Interval:
        """Bound ``rows · f(x)`` in every run, (Q,).

        Args:
            inputs: features that enter the head, as runs compute them, (Q, d).
            rows: a combination of outputs for each, (Q, K).
        """
        self.replay([(inputs, rows)])
        return self._found[_key(inputs, rows)]

    def replay(self, asked: Sequence[tuple[Interval, Tensor]]) -> None:
        """Bound several sets of combinations by one replay, and keep them for `combinations`.

        Args:
            asked: features and combinations of each.
        """
        new = {_key(inputs, rows): (_in_double(inputs), rows) for inputs, rows in asked}
        new = {key: each for key, each in new.items() if key not in self._found}
        if not new:
            return
        bounds = self._bound(Interval.cat([x for x, _ in new.values()]), torch.cat([rows for _, rows in new.values()]))
        ends = accumulate(len(rows) for _, rows in new.values())
        for (key, (_, rows)), end in zip(new.items(), ends, strict=True):
            self._found[key] = bounds[end - len(rows) : end]

    def _bound(self, inputs: Interval, rows: Tensor) -> Interval:
        layers = self.recorder.layers(-1)
        size = max(1, _MEMORY // (16 * (sum(layer.weight.numel() for layer in layers) + 1)))
        parts = []
        for start in range(0, len(rows), size):
            chunk = slice(start, start + size)
            outputs = output_combinations(
                layers, self.radius, Arithmetic(self.run, torch.float64), inputs[chunk], rows[chunk]
            )
            parts.append(outputs.bounds(self._displacements(outputs.directions)))
        return Interval.cat(parts)

    def _displacements(self, directions: Directions) -> Interval:
        steps = self.recorder.backward(self.loss, self.run)
        count = len(self.recorder.entries)
        with tqdm(total=count, desc=f"{len(directions)} directions", unit="step", leave=False, disable=None) as bar:
            return displacements(steps, directions, progress=lambda _: bar.update())


def _in_double(inputs: Interval) -> Interval:
    return inputs.to(dtype=torch.float64, device=torch.device("cpu"))


def _key(inputs: Interval, rows: Tensor) -> bytes:
    given, key = _in_double(inputs), blake2b(digest_size=16)
    for tensor in (given.lower, given.upper, rows):
        key.update(tensor.contiguous().numpy().tobytes())
    return key.digest()


@dataclass(frozen=True, eq=False)
class HeadTrajectory:
    """A recorded training of the layers that a captured graph ends in.

    Args:
        head: the layers, by the graph's names.
        recorded: the training.
        dependent: names of all values of the graph that depend on them.
    """

    head: Head
    recorded: RecordedTrajectory
    dependent: frozenset[str]

    def bound_values(self, inputs: Interval) -> dict[str, Interval]:
        """Bound the outputs, by value name.

        Args:
            inputs: features that enter the head, (b, d), as runs compute them.
        """
        return {self.head.output: self._bounds(inputs, *self._outputs(inputs))}

    def margins(self, inputs: Interval, target: Tensor) -> Interval:
        """Bound ``f_target - f_k`` for every output k, (b, K); zero for the target itself.

        Args:
            inputs: features that enter the head, (b, d), as runs compute them.
            target: integers (b,).
        """
        others = torch.ones(len(target), self._count, dtype=torch.bool).scatter(1, target.long().cpu()[:, None], False)  # noqa: FBT003
        bounds = self._bounds(inputs, *self._differences(inputs, target))
        lower, upper = torch.zeros(others.shape, dtype=torch.float64), torch.zeros(others.shape, dtype=torch.float64)
        lower[others], upper[others] = bounds.lower.cpu().flatten().double(), bounds.upper.cpu().flatten().double()
        return Interval.trusted(lower, upper).to(dtype=inputs.dtype, device=inputs.device)

    def foresee(self, inputs: Interval, target: Tensor) -> None:
        """Bound outputs and margins by one replay, and keep them.

        Args:
            inputs: features that enter the head, (b, d), as runs compute them.
            target: integers (b,).
        """
        self.recorded.replay([self._outputs(inputs), self._differences(inputs, target)])

    @property
    def _count(self) -> int:
        """Number of outputs."""
        return len(self.recorded.recorder.layers(-1)[-1].weight)

    def _outputs(self, inputs: Interval) -> tuple[Interval, Tensor]:
        """Every input with every output, one after another."""
        rows = torch.eye(self._count, dtype=torch.float64).repeat(inputs.shape[0], 1)
        return _repeated(inputs, self._count), rows

    def _differences(self, inputs: Interval, target: Tensor) -> tuple[Interval, Tensor]:
        """Every input with the target less every other output."""
        label = torch.nn.functional.one_hot(target.long().cpu(), self._count).double()
        differences = label[:, None, :] - torch.eye(self._count, dtype=torch.float64)
        return _repeated(inputs, self._count - 1), differences[~label.bool()]

    def _bounds(self, inputs: Interval, wide: Interval, rows: Tensor) -> Interval:
        """Bound combinations, as many for each input, (b, each), in the inputs' type."""
        bounds = self.recorded.combinations(wide, rows)
        shaped = bounds.rearranged(lambda bound: bound.reshape(inputs.shape[0], -1))
        return shaped.to(dtype=inputs.dtype, device=inputs.device)


def _repeated(inputs: Interval, each: int) -> Interval:
    return inputs.rearranged(lambda bound: bound.repeat_interleave(each, dim=0))


def match_recorded(
    recorder: TrajectoryRecorder, graph: Graph, names: Mapping[str, str], module: nn.Module
) -> tuple[Head, frozenset[str]] | None:
    """Return the recorded layers in a graph, and what is computed from them; None if the graph does not end in them.

    Args:
        recorder: the training.
        graph: a captured graph of the module.
        names: names of parameters in the module by value name.
        module: owner of the parameters.

    Raises:
        UnsoundBoundError: if the module has other parameters than the record ends in.
    """
    weights, biases = recorder.names[::2], recorder.names[1::2]
    trained = [name for name, trains in zip(biases, recorder.trained, strict=True) if trains]
    match = match_trained(graph, names, {name for name in (*weights, *trained) if name is not None})
    if match is None or [layer.weight for layer in match[0].layers] != list(weights):
        return None
    for name, recorded in zip(recorder.names, recorder.parameters[-1], strict=True):
        if name is not None and recorded is not None:
            own = module.get_parameter(name).detach().cpu()
            if not torch.equal(own.double(), recorded.double()):
                raise UnsoundBoundError(
                    f"Expected the recorded training to end in the module's parameters, but `{name}` has other "
                    "values. Something besides the recorded steps changed it. Certify the module as training left "
                    "it, or report it."
                )
    return match
