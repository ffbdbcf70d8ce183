"""The two passes over a batch: per-sample gradient bounds of clean data (equation 6) and of poisoned data (7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from agt_lightning.adversaries import Adversary
from agt_lightning.capture import reached
from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval
from agt_lightning.propagation import DEFAULT_MEMORY_BUDGET
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.propagation.prefix import PoisonedPrefix
from agt_lightning.propagation.samples import MicroBatch
from agt_lightning.rules.values import Value, as_interval, select


@dataclass(frozen=True)
class BoundedBatch:
    """One micro-batch of a step, with all that is the same for every domain.

    Args:
        bounded: its captured loss, with the rounding of runs and bounds.
        batch: the data.
        poisonable: positions of its poisonable samples; None means all.
        nominal: all values of the loss at the module's own parameters, on the data as it is, up to the rounding of
            their computation; empty if unknown.
        poisoned_prefix: bounds on the values of poisonable samples that depend on no trained parameter, computed when
            they are first read; None if nothing can be poisoned.
        sample_ids: integers that name the samples in all epochs, (b,); None if they have no names.
        frozen: `frozen_values`, on the data as it is, as runs compute them.
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
        unmoved = _unmoved(bounded, inputs, part.frozen, part.frozen)
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
        if part.poisoned_prefix is not None and config.method == "ibp":
            same |= _unmoved(bounded, inputs, part.frozen, part.poisoned_prefix.moved_layers)
        reachable = bounded.forward(inputs, same, within=known.poisoned, **_forward_settings(config))
        return reachable, bounded.gradients(reachable, part.size, config.dtype)


def _forward_settings(config: CertificationConfig) -> dict[str, Any]:
    return {"method": config.method, "memory_budget": config.memory_budget or DEFAULT_MEMORY_BUDGET}


def _unmoved(
    bounded: BoundedObjective,
    inputs: Mapping[str, Value],
    frozen: Mapping[str, Value],
    values: Mapping[str, Value],
) -> dict[str, Value]:
    """Choose values that depend on no parameter that is somewhere else.

    Whether a parameter is trained at present does not matter: one that was before keeps its box.

    Args:
        bounded: the captured loss.
        inputs: of the pass, parameters among them.
        frozen: the same where frozen values were computed; empty if they were not.
        values: frozen ones to choose from.
    """
    if not frozen:
        return {}
    graph = bounded.program.graph
    moved = {name for name in graph.parameters if not _same_point(as_interval(inputs[name]), as_interval(frozen[name]))}
    moving = reached(graph, moved)
    return {name: value for name, value in values.items() if name not in moving and name not in inputs}


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
    values = bounded.forward(inputs, _midpoints(bounded, frozen or {}))
    return values, bounded.gradients(values, bounded.size(batch.data), dtype)


def _midpoints(bounded: BoundedObjective, frozen: Mapping[str, Value]) -> dict[str, Value]:
    """Return what other layers read of frozen ones, as points."""
    read = bounded.frozen_layers - bounded.inside_frozen_layers
    return {name: _midpoint(value) for name, value in frozen.items() if name in read}


def _midpoint(value: Value) -> Value:
    """Return the middle of bounds that are as wide as rounding, and zero where that is inside."""
    if not isinstance(value, Interval) or value.is_point:
        return value
    middle = torch.where((value.lower <= 0) & (value.upper >= 0), 0.0, value.center)
    return Interval.point(middle, nonnegative=value.nonnegative)
