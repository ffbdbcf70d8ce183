"""The two passes over a batch: per-sample gradient bounds of clean data (equation 6) and of poisoned data (7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from agt_lightning.adversaries import Adversary
from agt_lightning.aggregation.rounded_sums import StepSums
from agt_lightning.arithmetic.compiled import readable
from agt_lightning.capture import reached
from agt_lightning.gradients import Buffers, CollectedGradients, FactoredGradient
from agt_lightning.interval import Interval
from agt_lightning.memory import chunks
from agt_lightning.propagation import DEFAULT_MEMORY_BUDGET
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.propagation.prefix import PoisonedPrefix
from agt_lightning.propagation.running_statistics import StatisticsUpdate, running_of
from agt_lightning.propagation.samples import MicroBatch
from agt_lightning.propagation.together import Together
from agt_lightning.rules.batch_statistics import BatchRows
from agt_lightning.rules.values import Value, as_interval, select

Chosen = TypeVar("Chosen", bound=Value)

_NONE = torch.empty(0, dtype=torch.int64)
"""Positions of no samples."""

_CACHED = 2**20
"""Bytes of the widest value of the samples that are bounded at a time; a dozen such tensors are in use at once."""


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
        sources: integers that name the source of each sample, (b,); None if no sources are named.
    """

    bounded: BoundedObjective
    batch: MicroBatch
    poisonable: Tensor | None
    nominal: Mapping[str, Value]
    poisoned_prefix: PoisonedPrefix | None = None
    sample_ids: Tensor | None = None
    frozen: Mapping[str, Value] = field(default_factory=dict)
    sources: Tensor | None = None

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
        statistics: how the loss moves running statistics of batch normalization, in this order.
    """

    clean: Mapping[str, FactoredGradient]
    poisoned: Mapping[str, FactoredGradient]
    values: ValueBounds
    statistics: tuple[StatisticsUpdate, ...] = ()


def propagate(
    part: BoundedBatch,
    module: nn.Module,
    box: Mapping[str, Interval],
    adversary: Adversary,
    config: CertificationConfig,
    sums: StepSums,
    buffers: Buffers,
    known: ValueBounds | None = None,
) -> GradientBounds:
    """Bound the gradients of one micro-batch by both passes, some samples at a time.

    All tensors of these samples stay in the cache until their gradients are collected. What is shared by samples is
    computed once.

    Args:
        part: the micro-batch. Values that depend on no parameter with a box are not computed again.
        module: owner of the buffers.
        box: bounds by parameter name.
        adversary: the threat model.
        config: how bounds are propagated forward, in which type and memory; backward they always are intervals.
        sums: the roundings of sums over samples, which the gradients are widened for.
        buffers: memory for the gradients.
        known: other bounds on some values, with which those of the box are intersected.
    """
    bounded = part.bounded
    inputs = bounded.inputs(module, part.batch.data, box, config.dtype, part.batch.state)
    statistics = bounded.evaluated_statistics(module, part.batch.data, config.dtype, part.batch.state)
    if bounded.program.mixing:
        bounds = _side_by_side(part, inputs, adversary, config, sums)
        return replace(bounds, statistics=statistics + bounds.statistics)
    reachable: Mapping[str, Value] = {}
    if part.poisoned_prefix is not None and config.method == "ibp":
        reachable = _unmoved(bounded, inputs, part.frozen, part.poisoned_prefix.moved_layers)
    whole = _Samples(
        part.poisonable if poisonable_at_all(bounded, adversary, part.poisonable) else _NONE,
        inputs,
        _unmoved(bounded, inputs, part.frozen, part.frozen),
        reachable,
        known or ValueBounds(),
    )
    passes = _Passes(bounded, part.size, adversary, config, sums)
    poisonable = part.size if whole.poisonable is None else len(whole.poisonable)
    collected, values = CollectedGradients(part.size, poisonable, buffers), []
    for samples in whole.chunks(passes):
        bounds = passes.over(samples)
        collected.add(bounds.clean, bounds.poisoned)
        values.append(bounds.values)
    return GradientBounds(*collected.result(), _joined(values), statistics)


def _side_by_side(
    part: BoundedBatch, inputs: Mapping[str, Value], adversary: Adversary, config: CertificationConfig, sums: StepSums
) -> GradientBounds:
    """Bound the gradients of a micro-batch that is normalized by its own statistics, all samples at once."""
    bounded, poisoned = part.bounded, None
    if poisonable_at_all(bounded, adversary, part.poisonable):
        poisoned = bounded.poisoned(inputs, adversary, part.poisonable)
    rows = BatchRows(part.size, part.poisonable, adversary.n)
    touched = reached(bounded.program.graph, bounded.perturbed_leaves(adversary))
    with record_function("agt: both passes"):
        together = Together(bounded.program, inputs, poisoned, rows, touched, bounded.skipped, config.dtype)
        seeds = [bounded.seeds(values, part.size, config.dtype) for values in together.values]
        clean, *moved = (sums.widened(bounded.named(each)) for each in together.gradients(seeds))
    return GradientBounds(clean, moved[0] if moved else {}, ValueBounds(), together.statistics())


@dataclass(frozen=True)
class _Samples:
    """Some samples of a micro-batch and what is known of them, before the passes.

    Args:
        poisonable: positions of those that can be poisoned, ascending; None means all.
        inputs: of the program, by name, on the data as it is.
        unmoved: values that no box moves, on the data as it is.
        reachable: the same for poisonable samples under the adversary, where it can change them.
        known: other bounds on some values.
    """

    poisonable: Tensor | None
    inputs: Mapping[str, Value]
    unmoved: Mapping[str, Value]
    reachable: Mapping[str, Value]
    known: ValueBounds

    def chunks(self, passes: _Passes) -> Iterator[_Samples]:
        """Yield these samples in parts whose values fit in the cache of a CPU and the budget; all at once elsewhere.

        What is read as it is, such as outputs of frozen layers, does not count: it is read once.
        """
        bounded, size, config = passes.bounded, passes.size, passes.config
        graph, perturbed = bounded.program.graph, bounded.perturbed_leaves(passes.adversary)
        again = bounded.computed(self.reachable) & reached(graph, perturbed)
        moved = perturbed.intersection(name for call in graph.calls if call.name in again for name in call.inputs)
        computed = bounded.program.samples & (bounded.computed(self.unmoved) | again | moved)
        widest = max((torch.Size(graph.shapes[name][1:]).numel() for name in computed), default=1)
        fits = max(1, min(_CACHED, config.memory_budget or _CACHED) // (config.dtype.itemsize * max(1, widest)))
        if size <= fits or not readable(*(each.lower for each in self.inputs.values() if isinstance(each, Interval))):
            yield self
            return
        for rows in chunks(size, 1, fits):
            yield self.part(rows, bounded.program.samples)

    def part(self, rows: slice, samples: frozenset[str]) -> _Samples:
        """Return some consecutive samples.

        Args:
            rows: their positions.
            samples: names of the values that have samples.
        """
        poisonable, places = self.poisonable, rows
        if poisonable is not None:
            start, stop = (int((poisonable < position).sum()) for position in (rows.start, rows.stop))
            places, poisonable = slice(start, stop), poisonable[start:stop] - rows.start

        def chosen(values: Mapping[str, Chosen], positions: slice) -> dict[str, Chosen]:
            return {name: select(value, positions) if name in samples else value for name, value in values.items()}  # type: ignore[misc]

        known = ValueBounds(chosen(self.known.clean, rows), chosen(self.known.poisoned, places))
        return _Samples(
            poisonable, chosen(self.inputs, rows), chosen(self.unmoved, rows), chosen(self.reachable, places), known
        )


@dataclass(frozen=True)
class _Passes:
    """Both passes of one step through one program.

    Args:
        bounded: the captured loss.
        size: number of samples of the whole micro-batch.
        adversary: the threat model.
        config: how bounds are propagated.
        sums: the roundings of sums over samples.
    """

    bounded: BoundedObjective
    size: int
    adversary: Adversary
    config: CertificationConfig
    sums: StepSums

    def over(self, samples: _Samples) -> GradientBounds:
        """Bound the gradients of some samples."""
        with record_function("agt: clean pass"):
            values = self._forward(samples.inputs, samples.unmoved, samples.known.clean)
            clean = self.sums.widened(self.bounded.gradients(values, self.size, self.config.dtype))
        kept = {name: as_interval(values[name]) for name in samples.known.clean}
        if samples.poisonable is not None and not len(samples.poisonable):
            return GradientBounds(clean, {}, ValueBounds(kept))
        with record_function("agt: poisoned pass"):
            reachable = self._poisoned(values, samples)
            poisoned = self.sums.widened(self.bounded.gradients(reachable, self.size, self.config.dtype))
        moved = {name: as_interval(reachable[name]) for name in samples.known.poisoned}
        return GradientBounds(clean, poisoned, ValueBounds(kept, moved))

    def _forward(
        self, inputs: Mapping[str, Value], same: Mapping[str, Value], within: Mapping[str, Interval]
    ) -> dict[str, Value]:
        return self.bounded.forward(
            inputs,
            same,
            within=within,
            method=self.config.method,
            memory_budget=self.config.memory_budget or DEFAULT_MEMORY_BUDGET,
        )

    def _poisoned(self, values: Mapping[str, Value], samples: _Samples) -> dict[str, Value]:
        """Bound values for poisonable samples and all that the adversary can make of these (equation 7).

        Args:
            values: of the clean pass; those that the adversary cannot change are kept.
            samples: the samples.
        """
        program, rows = self.bounded.program, samples.poisonable
        inputs = self.bounded.poisoned(values, self.adversary, rows)
        touched = reached(program.graph, self.bounded.perturbed_leaves(self.adversary))
        same = {
            name: select(value, rows) if name in program.samples else value
            for name, value in values.items()
            if name not in touched and name not in inputs
        }
        return self._forward(inputs, same | dict(samples.reachable), samples.known.poisoned)


def propagate_statistics(
    bounded: BoundedObjective, module: nn.Module, batch: MicroBatch, dtype: torch.dtype
) -> tuple[StatisticsUpdate, ...]:
    """Return how a micro-batch as it is moves running statistics at the module's own parameters.

    Args:
        bounded: the captured loss, with the rounding of runs.
        module: owner of parameters and buffers.
        batch: the data.
        dtype: floating point type to compute in.
    """
    evaluated = bounded.evaluated_statistics(module, batch.data, dtype, batch.state)
    if not running_of(bounded.program):
        return evaluated
    points = {name: Interval.point(p.detach()).to(dtype=dtype) for name, p in module.named_parameters()}
    inputs = bounded.inputs(module, batch.data, points, dtype, batch.state)
    rows = BatchRows(bounded.size(batch.data))
    return evaluated + Together(bounded.program, inputs, None, rows, frozenset(), bounded.skipped, dtype).statistics()


def _joined(parts: Sequence[ValueBounds]) -> ValueBounds:
    """Return bounds on values of consecutive samples as one; parts without poisonable samples have no poisoned ones."""
    if len(parts) == 1:
        return parts[0]
    return ValueBounds(_stacked([part.clean for part in parts]), _stacked([part.poisoned for part in parts]))


def _stacked(parts: Sequence[Mapping[str, Interval]]) -> dict[str, Interval]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: Interval.cat([part[name] for part in parts if name in part]) for name in names}


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
