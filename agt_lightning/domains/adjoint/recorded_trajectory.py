"""A recorded training as a set of parameters that certificates bound outputs over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture import Graph
from agt_lightning.domains.adjoint.directions import Directions
from agt_lightning.domains.adjoint.output_bounds import OutputCombinations
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
        given = inputs.to(dtype=torch.float64, device=torch.device("cpu"))
        key = blake2b(digest_size=16)
        for tensor in (given.lower, given.upper, rows):
            key.update(tensor.contiguous().numpy().tobytes())
        if key.digest() not in self._found:
            self._found[key.digest()] = self._bound(given, rows)
        return self._found[key.digest()]

    def _bound(self, inputs: Interval, rows: Tensor) -> Interval:
        layers = self.recorder.layers(-1)
        size = max(1, _MEMORY // (16 * (layers[0].weight.numel() + layers[1].weight.numel() + 1)))
        parts = []
        for start in range(0, len(rows), size):
            chunk = slice(start, start + size)
            outputs = OutputCombinations(
                layers, self.radius, Arithmetic(self.run, torch.float64), inputs[chunk], rows[chunk]
            )
            parts.append(outputs.bounds(self._displacements(outputs.directions)))
        return Interval.cat(parts)

    def _displacements(self, directions: Directions) -> Interval:
        steps = self.recorder.backward(self.loss, self.run)
        count = len(self.recorder.entries)
        with tqdm(total=count, desc=f"{len(directions)} directions", unit="step", leave=False, disable=None) as bar:
            return displacements(steps, directions, progress=lambda _: bar.update())


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
        outputs = len(self.recorded.recorder.layers(-1)[1].weight)
        rows = torch.eye(outputs, dtype=torch.float64).repeat(inputs.shape[0], 1)
        bounds = self._combinations(inputs, rows, outputs)
        return {self.head.output: bounds}

    def margins(self, inputs: Interval, target: Tensor) -> Interval:
        """Bound ``f_target - f_k`` for every output k, (b, K); zero for the target itself.

        Args:
            inputs: features that enter the head, (b, d), as runs compute them.
            target: integers (b,).
        """
        outputs = len(self.recorded.recorder.layers(-1)[1].weight)
        label = torch.nn.functional.one_hot(target.long().cpu(), outputs).double()
        others = ~label.bool()
        differences = (label[:, None, :] - torch.eye(outputs, dtype=torch.float64))[others]
        bounds = self._combinations(inputs, differences, outputs - 1)
        lower, upper = torch.zeros_like(label), torch.zeros_like(label)
        lower[others], upper[others] = bounds.lower.cpu().flatten().double(), bounds.upper.cpu().flatten().double()
        return Interval.trusted(lower, upper).to(dtype=inputs.dtype, device=inputs.device)

    def _combinations(self, inputs: Interval, rows: Tensor, each: int) -> Interval:
        """Bound so many combinations of each input, (b, each)."""
        wide = inputs.rearranged(lambda bound: bound.repeat_interleave(each, dim=0))
        bounds = self.recorded.combinations(wide, rows)
        shaped = bounds.rearranged(lambda bound: bound.reshape(-1, each))
        return shaped.to(dtype=inputs.dtype, device=inputs.device)


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
    first, first_bias, second, second_bias = recorder.names
    biases = zip((first_bias, second_bias), recorder.trained, strict=True)
    match = match_trained(graph, names, {first, second, *(name for name, trained in biases if name and trained)})
    if match is None or [layer.weight for layer in match[0].layers] != [first, second]:
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
