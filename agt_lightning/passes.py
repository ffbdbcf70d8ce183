"""The two passes over a batch: per-sample gradient bounds of clean data (equation 6) and of poisoned data (7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from agt_lightning.adversaries import Adversary
from agt_lightning.aggregation import SampleSet
from agt_lightning.capture import reached
from agt_lightning.capture.dropout import RandomState
from agt_lightning.errors import UncertifiableError
from agt_lightning.gradients import FactoredGradient, stack
from agt_lightning.interval import Interval
from agt_lightning.objective import BoundedObjective, select
from agt_lightning.propagation import DEFAULT_MEMORY_BUDGET, Method, propagate_forward
from agt_lightning.rules.base import Value, interval

Poisonable = Callable[[object], Tensor] | str
"""Which samples can be poisoned: a function from batch to boolean mask, or the key of such a mask in the batch."""

SampleIds = Callable[[object], Tensor] | str
"""Names of samples in all epochs: a function from batch to integers (batch,), or the key of such a tensor in it."""


@dataclass(frozen=True)
class MicroBatch:
    """A batch and what else its training step could see.

    Args:
        data: the batch.
        state: the generators' state when the step began, from which dropout drew its masks; None if unknown.
        epoch: number of the pass over the data set that it belongs to.
    """

    data: object
    state: RandomState | None = None
    epoch: int = 0

    @classmethod
    def of(cls, batch: object) -> MicroBatch:
        """The batch itself if it is one already."""
        return batch if isinstance(batch, MicroBatch) else cls(batch)


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
    values: Enclosure


@dataclass(frozen=True)
class Enclosure:
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
    known: Enclosure | None = None,
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
    known = known or Enclosure()
    size = bounded.size(batch.data)
    with record_function("agt: clean pass"):
        inputs = bounded.inputs(module, batch.data, box, dtype, batch.state)
        unmoved = {} if nominal is None else _unmoved(bounded, inputs, nominal)
        values = bounded.forward(inputs, unmoved, within=known.clean, method=method, memory_budget=memory_budget)
        clean = bounded.gradients(values, size, dtype)
    weights = sample_weights(bounded, batch, scale, dtype, next(iter(box.values())).device)
    kept = {name: interval(values[name]) for name in known.clean}
    if not poisonable_at_all(bounded, adversary, rows):
        return Pass(clean, {}, weights, rows, Enclosure(kept))
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
    kept_poisoned = {name: interval(reachable[name]) for name in known.poisoned}
    return Pass(clean, poisoned, weights, rows, Enclosure(kept, kept_poisoned))


def _unmoved(bounded: BoundedObjective, inputs: Mapping[str, Value], nominal: Mapping[str, Value]) -> dict[str, Value]:
    """Nominal values that depend on no parameter that is somewhere else.

    Whether a parameter is trained at present does not matter: one that was before keeps its box.
    """
    graph = bounded.program.graph
    moved = {name for name in graph.parameters if not _same_point(interval(inputs[name]), interval(nominal[name]))}
    moving = reached(graph, moved)
    return {name: value for name, value in nominal.items() if name not in moving and name not in inputs}


def _same_point(box: Interval, point: Interval) -> bool:
    return box.is_point and torch.equal(box.lower, point.lower)


def sample_weights(
    bounded: BoundedObjective, batch: MicroBatch, scale: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Weight of each sample of a micro-batch in the applied gradient, (b,)."""
    size = bounded.size(batch.data)
    return torch.full((size,), scale * bounded.sample_weight(size), dtype=dtype, device=device)


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


class FrozenReach:
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


def poisonable_rows(poisonable: Poisonable | None, batch: object, size: int) -> Tensor | None:
    """Positions of the samples that can be poisoned; None means all.

    Raises:
        KeyError: if ``poisonable`` names a key that the batch does not have.
        ValueError: if the mask is not boolean of shape (batch,).
    """
    if poisonable is None:
        return None
    mask = _entry("poisonable", poisonable, batch) if isinstance(poisonable, str) else poisonable(batch)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (size,):
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(type(mask))
        raise ValueError(f"Expected `poisonable` to give a boolean mask of shape ({size},), but got {got}.")
    return None if bool(mask.all()) else mask.nonzero().squeeze(1)


def ids_of_samples(sample_ids: SampleIds | None, batch: object, size: int) -> Tensor | None:
    """Integers that name the samples of a batch in all epochs, (batch,); None if they have no names.

    Raises:
        KeyError: if ``sample_ids`` names a key that the batch does not have.
        ValueError: if the ids are no integers of shape (batch,).
    """
    if sample_ids is None:
        return None
    ids = _entry("sample_ids", sample_ids, batch) if isinstance(sample_ids, str) else sample_ids(batch)
    integers = isinstance(ids, Tensor) and not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if not isinstance(ids, Tensor) or not integers or tuple(ids.shape) != (size,):
        got = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else repr(type(ids))
        raise ValueError(f"Expected `sample_ids` to give integers of shape ({size},), but got {got}.")
    return ids.long()


def _entry(setting: str, key: str, batch: object) -> object:
    if not isinstance(batch, Mapping) or key not in batch:
        raise KeyError(f"Expected a batch with the key {key!r} of `{setting}`, but got {type(batch).__name__}.")
    return batch[key]


def sample_set(weights: Sequence[Tensor], poisonable: Sequence[Tensor | None]) -> SampleSet:
    """The samples of all micro-batches of a step, one after another.

    Args:
        weights: of each micro-batch's samples.
        poisonable: positions of the poisonable samples in each micro-batch; None means all.
    """
    together = torch.cat(list(weights))
    if all(rows is None for rows in poisonable):
        return SampleSet(together)
    positions, offset = [], 0
    for part, rows in zip(weights, poisonable, strict=True):
        every = torch.arange(len(part), device=part.device)
        positions.append(offset + (every if rows is None else rows))
        offset += len(part)
    return SampleSet(together, torch.cat(positions))


def stacked(parts: Sequence[Mapping[str, FactoredGradient]]) -> dict[str, FactoredGradient]:
    """Gradients of all micro-batches of a step, one sample after another, by parameter.

    Raises:
        UncertifiableError: if some micro-batch does not use a parameter that another uses.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    for name in names:
        if any(name not in part for part in parts):
            raise UncertifiableError(
                [f"`{name}` is used in some micro-batches of a step and not in others. Use the same code for all."]
            )
    return {name: stack([part[name] for part in parts]) for name in names}
