"""The two passes over a batch: per-sample gradient bounds of clean data (equation 6) and of poisoned data (7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from agt_lightning.adversaries import Adversary
from agt_lightning.capture import reached
from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval
from agt_lightning.propagation import DEFAULT_MEMORY_BUDGET, Method, propagate_forward
from agt_lightning.propagation.objective import BoundedObjective, select
from agt_lightning.propagation.samples import MicroBatch, sample_weights
from agt_lightning.rules.base import Value, as_interval


@dataclass(frozen=True)
class Pass:
    """Per-sample gradient bounds of one micro-batch.

    Args:
        clean: by parameter, for the data as it is, with the parameters anywhere in their box.
        poisoned: the same for poisonable samples within the adversary's balls; empty if nothing can be poisoned.
        weights: weight w_i of each sample in the applied gradient, (b,).
        poisonable: positions of the poisonable samples; None means all.
        values: bounds on those values of the loss about which something else was known.
    """

    clean: Mapping[str, FactoredGradient]
    poisoned: Mapping[str, FactoredGradient]
    weights: Tensor
    poisonable: Tensor | None
    values: ValueBounds


@dataclass(frozen=True)
class ValueBounds:
    """Bounds on some values of one micro-batch, by value name.

    Args:
        clean: for the data as it is.
        poisoned: for poisonable samples within the adversary's reach.
    """

    clean: Mapping[str, Interval] = field(default_factory=dict)
    poisoned: Mapping[str, Interval] = field(default_factory=dict)


def propagate(
    bounded: BoundedObjective,
    module: nn.Module,
    batch: MicroBatch,
    box: Mapping[str, Interval],
    adversary: Adversary,
    *,
    scale: float,
    rows: Tensor | None,
    dtype: torch.dtype,
    nominal: Mapping[str, Value] | None = None,
    known: ValueBounds | None = None,
    method: Method = "ibp",
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Pass:
    """Both passes over one micro-batch; the poisoned one keeps what the adversary cannot touch.

    Args:
        bounded: the captured loss of this batch.
        module: owner of the buffers.
        batch: the batch.
        box: bounds by parameter name.
        adversary: the threat model.
        scale: factor in front of this micro-batch's loss.
        rows: positions of the poisonable samples; None means all.
        dtype: floating point type to compute in.
        nominal: values on the data as it is at the module's own parameters, if they are at hand: those that depend on
            no parameter with a box are not computed again.
        known: other bounds on some values, with which those of the box are intersected.
        method: how bounds are propagated forward; backward, they always are intervals.
        memory_budget: bytes for the coefficients of linear bounds.
    """
    known = known or ValueBounds()
    size = bounded.size(batch.data)
    with record_function("agt: clean pass"):
        inputs = bounded.inputs(module, batch.data, box, dtype, batch.state)
        unmoved = {} if nominal is None else _unmoved(bounded, inputs, nominal)
        values = bounded.forward(inputs, unmoved, within=known.clean, method=method, memory_budget=memory_budget)
        clean = bounded.gradients(values, size, dtype)
    weights = sample_weights(bounded, batch, scale, dtype, next(iter(box.values())).device)
    kept = {name: as_interval(values[name]) for name in known.clean}
    if not poisonable_at_all(bounded, adversary, rows):
        return Pass(clean, {}, weights, rows, ValueBounds(kept))
    with record_function("agt: poisoned pass"):
        inputs = bounded.poisoned(values, adversary, rows)
        touched = reached(bounded.program.graph, bounded.perturbed_leaves(adversary))
        same = {
            name: select(value, rows) if name in bounded.program.samples else value
            for name, value in values.items()
            if name not in touched and name not in inputs
        }
        reachable = bounded.forward(inputs, same, within=known.poisoned, method=method, memory_budget=memory_budget)
        poisoned = bounded.gradients(reachable, size, dtype)
    kept_poisoned = {name: as_interval(reachable[name]) for name in known.poisoned}
    return Pass(clean, poisoned, weights, rows, ValueBounds(kept, kept_poisoned))


def _unmoved(bounded: BoundedObjective, inputs: Mapping[str, Value], nominal: Mapping[str, Value]) -> dict[str, Value]:
    """Nominal values that depend on no parameter that is somewhere else.

    Whether a parameter is trained at present does not matter: one that was before keeps its box.
    """
    graph = bounded.program.graph
    moved = {
        name for name in graph.parameters if not _same_point(as_interval(inputs[name]), as_interval(nominal[name]))
    }
    moving = reached(graph, moved)
    return {name: value for name, value in nominal.items() if name not in moving and name not in inputs}


def _same_point(box: Interval, point: Interval) -> bool:
    return box.is_point and torch.equal(box.lower, point.lower)


def poisonable_at_all(bounded: BoundedObjective, adversary: Adversary, rows: Tensor | None) -> bool:
    """Whether the adversary can change anything in this micro-batch."""
    return adversary.n > 0 and bool(bounded.perturbed_leaves(adversary)) and (rows is None or len(rows) > 0)


def propagate_nominal(
    bounded: BoundedObjective, module: nn.Module, batch: MicroBatch, dtype: torch.dtype
) -> tuple[dict[str, Value], dict[str, FactoredGradient]]:
    """Values and per-sample gradients at the module's own parameters, on the data as it is."""
    points = {name: Interval.point(p.detach().to(dtype)) for name, p in module.named_parameters()}
    values = bounded.forward(bounded.inputs(module, batch.data, points, dtype, batch.state))
    return values, bounded.gradients(values, bounded.size(batch.data), dtype)


class PoisonedPrefix:
    """Values of poisonable samples within the adversary's reach, as far as they depend on no trained parameter.

    What the adversary cannot touch is at hand; the rest is computed when the first of it is asked for.

    Args:
        bounded: the captured loss of this batch.
        values: at the module's own parameters, on the data as it is.
        adversary: the threat model.
        rows: positions of the poisonable samples; None means all.
    """

    def __init__(
        self, bounded: BoundedObjective, values: Mapping[str, Value], adversary: Adversary, rows: Tensor | None
    ) -> None:
        self.bounded = bounded
        self.values = values
        self.adversary = adversary
        self.rows = rows

    def __getitem__(self, name: str) -> Value:
        """A value by its name.

        Raises:
            KeyError: if it depends on a trained parameter.
        """
        if name in self._touched or name in self._moving:
            return self._reachable[name]
        return select(self.values[name], self.rows) if name in self.bounded.program.samples else self.values[name]

    @cached_property
    def _touched(self) -> frozenset[str]:
        return reached(self.bounded.program.graph, self.bounded.perturbed_leaves(self.adversary))

    @property
    def _moving(self) -> frozenset[str]:
        return self.bounded.dependent | self.bounded.skipped

    @cached_property
    def _reachable(self) -> dict[str, Value]:
        calls = frozenset(call.name for call in self.bounded.program.graph.calls)
        inputs = self.bounded.poisoned(self.values, self.adversary, self.rows)
        return propagate_forward(self.bounded.program, inputs, skip=calls & self._moving)
