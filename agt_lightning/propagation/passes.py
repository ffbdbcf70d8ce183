"""The two passes over a batch: per-sample gradient bounds of clean data (equation 6) and of poisoned data (7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from agt_lightning.adversaries import Adversary
from agt_lightning.capture import Graph, reached
from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval
from agt_lightning.propagation import DEFAULT_MEMORY_BUDGET, propagate_forward
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.objective import BoundedObjective, select
from agt_lightning.propagation.samples import MicroBatch
from agt_lightning.rules.values import Value, as_interval


@dataclass(frozen=True)
class BoundedBatch:
    """One micro-batch of a step, with all that is the same for every domain.

    Args:
        bounded: its captured loss, with the rounding of runs and bounds.
        batch: the data.
        poisonable: positions of its poisonable samples; None means all.
        nominal: all values of the loss at the module's own parameters, on the data as it is, up to the rounding of
            their computation; empty if unknown.
        poisoned_prefix: bounds on the values of poisonable samples that depend on no trained parameter; None if
            nothing can be poisoned or no domain reads them.
        sample_ids: integers that name the samples in all epochs, (b,); None if they have no names.
        frozen: bounds on the values that depend on no trained parameter, on the data as it is, as runs compute them.
    """

    bounded: BoundedObjective
    batch: MicroBatch
    poisonable: Tensor | None
    nominal: Mapping[str, Value]
    poisoned_prefix: PoisonedPrefix | None = None
    sample_ids: Tensor | None = None
    frozen: Mapping[str, Value] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.bounded.size(self.batch.data)


@dataclass(frozen=True)
class ValueBounds:
    """Bounds on some values of one micro-batch, by value name.

    Args:
        clean: for the data as it is.
        poisoned: for poisonable samples under the adversary.
    """

    clean: Mapping[str, Interval] = field(default_factory=dict)
    poisoned: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class GradientBounds:
    """Bounds on the gradient of each sample of one micro-batch, with the parameters anywhere in their box.

    Args:
        clean: by parameter name, for the data as it is (equation 6).
        poisoned: the same for poisonable samples under the adversary (equation 7); empty if nothing can be poisoned.
        values: bounds on those values of the loss that other bounds were given for.
    """

    clean: Mapping[str, FactoredGradient]
    poisoned: Mapping[str, FactoredGradient]
    values: ValueBounds


def propagate(
    part: BoundedBatch,
    module: nn.Module,
    box: Mapping[str, Interval],
    adversary: Adversary,
    config: CertificationConfig,
    known: ValueBounds | None = None,
) -> GradientBounds:
    """Bound the gradients of one micro-batch by both passes.

    Args:
        part: the micro-batch. Values that depend on no parameter with a box are not computed again.
        module: owner of the buffers.
        box: bounds by parameter name.
        adversary: the threat model.
        config: how bounds are propagated forward, in which type and memory; backward they always are intervals.
        known: other bounds on some values, with which those of the box are intersected.
    """
    known = known or ValueBounds()
    values, clean = _clean_pass(part, module, box, config, known)
    kept = {name: as_interval(values[name]) for name in known.clean}
    if not poisonable_at_all(part.bounded, adversary, part.poisonable):
        return GradientBounds(clean, {}, ValueBounds(kept))
    reachable, poisoned = _poisoned_pass(part, values, adversary, config, known)
    return GradientBounds(clean, poisoned, ValueBounds(kept, {n: as_interval(reachable[n]) for n in known.poisoned}))


def _clean_pass(
    part: BoundedBatch,
    module: nn.Module,
    box: Mapping[str, Interval],
    config: CertificationConfig,
    known: ValueBounds,
) -> tuple[dict[str, Value], dict[str, FactoredGradient]]:
    """Bound values and gradients for the data as it is and every parameter in the box (equation 6)."""
    bounded, size = part.bounded, part.size
    with record_function("agt: clean pass"):
        inputs = bounded.inputs(module, part.batch.data, box, config.dtype, part.batch.state)
        unmoved = _unmoved(bounded, inputs, part.frozen)
        values = bounded.forward(inputs, unmoved, within=known.clean, **_forward_settings(config))
        return values, bounded.gradients(values, size, config.dtype)


def _poisoned_pass(
    part: BoundedBatch,
    values: Mapping[str, Value],
    adversary: Adversary,
    config: CertificationConfig,
    known: ValueBounds,
) -> tuple[dict[str, Value], dict[str, FactoredGradient]]:
    """Bound them for poisonable samples and all that the adversary can make of these (equation 7).

    Args:
        part: the micro-batch.
        values: of the clean pass; those that the adversary cannot change are kept.
        adversary: the threat model.
        config: as above.
        known: as above.
    """
    bounded, rows = part.bounded, part.poisonable
    with record_function("agt: poisoned pass"):
        inputs = bounded.poisoned(values, adversary, rows)
        touched = reached(bounded.program.graph, bounded.perturbed_leaves(adversary))
        same = {
            name: select(value, rows) if name in bounded.program.samples else value
            for name, value in values.items()
            if name not in touched and name not in inputs
        }
        reachable = bounded.forward(inputs, same, within=known.poisoned, **_forward_settings(config))
        return reachable, bounded.gradients(reachable, part.size, config.dtype)


def _forward_settings(config: CertificationConfig) -> dict[str, Any]:
    return {"method": config.method, "memory_budget": config.memory_budget or DEFAULT_MEMORY_BUDGET}


def _unmoved(bounded: BoundedObjective, inputs: Mapping[str, Value], frozen: Mapping[str, Value]) -> dict[str, Value]:
    """Frozen values that depend on no parameter that is somewhere else.

    Whether a parameter is trained at present does not matter: one that was before keeps its box.
    """
    if not frozen:
        return {}
    graph = bounded.program.graph
    moved = {name for name in graph.parameters if not _same_point(as_interval(inputs[name]), as_interval(frozen[name]))}
    moving = reached(graph, moved)
    return {name: value for name, value in frozen.items() if name not in moving and name not in inputs}


def _same_point(box: Interval, point: Interval) -> bool:
    return box.is_point and torch.equal(box.lower, point.lower)


def poisonable_at_all(bounded: BoundedObjective, adversary: Adversary, rows: Tensor | None) -> bool:
    """Whether the adversary can change anything in this micro-batch."""
    return adversary.n > 0 and bool(bounded.perturbed_leaves(adversary)) and (rows is None or len(rows) > 0)


def propagate_nominal(
    bounded: BoundedObjective,
    module: nn.Module,
    batch: MicroBatch,
    dtype: torch.dtype,
    frozen: Mapping[str, Value] | None = None,
) -> tuple[dict[str, Value], dict[str, FactoredGradient]]:
    """Return values and per-sample gradients at the module's own parameters, on the data as it is.

    Args:
        bounded: the captured loss.
        module: owner of parameters and buffers.
        batch: the data.
        dtype: floating point type to compute in.
        frozen: `frozen_values`; the midpoints of what frozen layers give to others are taken from them, not computed
            again. Targets are: they are compared with those of other samples.
    """
    points = {name: Interval.point(p.detach()).to(dtype=dtype) for name, p in module.named_parameters()}
    inputs = bounded.inputs(module, batch.data, points, dtype, batch.state)
    values = bounded.forward(inputs, _midpoints(bounded.program.graph, frozen or {}))
    return values, bounded.gradients(values, bounded.size(batch.data), dtype)


def _midpoints(graph: Graph, frozen: Mapping[str, Value]) -> dict[str, Value]:
    """Return what frozen layers compute; as points, where others read it."""
    layers = reached(graph, set(graph.parameters)) - set(graph.parameters)
    known = {name: value for name, value in frozen.items() if name in layers}
    read = {name for call in graph.calls if call.name not in known for name in call.inputs}
    return {name: _midpoint(value) if name in read else value for name, value in known.items()}


def _midpoint(value: Value) -> Value:
    """Return the middle of bounds that are as wide as rounding, and zero where that is inside."""
    if not isinstance(value, Interval) or value.is_point:
        return value
    middle = torch.where((value.lower <= 0) & (value.upper >= 0), 0.0, value.center)
    return Interval.point(middle, nonnegative=value.nonnegative)


def frozen_values(
    bounded: BoundedObjective, module: nn.Module, batch: MicroBatch, dtype: torch.dtype
) -> dict[str, Value]:
    """Bounds on all inputs, and on the values that depend on no trained parameter, on the data as it is.

    Args:
        bounded: the captured loss, with roundings: sums in another order have other values, frozen or not.
        module: owner of parameters and buffers.
        batch: the data.
        dtype: floating point type to compute in.
    """
    points = {name: Interval.point(p.detach()).to(dtype=dtype) for name, p in module.named_parameters()}
    calls = frozenset(call.name for call in bounded.program.graph.calls)
    inputs = bounded.inputs(module, batch.data, points, dtype, batch.state)
    return propagate_forward(bounded.program, inputs, skip=calls & (bounded.dependent | bounded.skipped))


class PoisonedPrefix:
    """Bounds on the frozen part of the network for poisoned samples: values that depend on no trained parameter.

    Values that the adversary cannot change are copied from the clean ones; the others are computed on first access.

    Args:
        bounded: the captured loss of this batch.
        values: `frozen_values`, on the data as it is.
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
