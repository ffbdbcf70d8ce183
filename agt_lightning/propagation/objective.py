"""A training loss that can be bounded: captured once per batch shape, joined with rules, evaluated on batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.features import as_stored
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture import Graph, LabelKind, LossRoles, flatten, reached
from agt_lightning.capture.counted_labels import CountedLabels
from agt_lightning.capture.dropout import RandomState, draw_masks, masks_of_size
from agt_lightning.capture.graph import Draw, Mask
from agt_lightning.errors import UncertifiableError
from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation import (
    DEFAULT_MEMORY_BUDGET,
    Method,
    Program,
    propagate_backward,
    propagate_forward,
    refinement,
)
from agt_lightning.propagation.evaluated import Prelude
from agt_lightning.propagation.running_statistics import StatisticsUpdate, evaluated_update
from agt_lightning.rounding import Floats
from agt_lightning.rules import Value
from agt_lightning.rules.values import as_interval, select

Loss = Callable[[nn.Module, object], Tensor]
"""Maps a module and a batch to the scalar loss; what Lightning's `training_step` computes."""


@dataclass(frozen=True, eq=False)
class BoundedObjective:
    """A captured loss with a rule for each call.

    Args:
        objective: the captured graph and the roles of its inputs.
        program: the graph joined with rules.
        parameters: value name to canonical parameter name in the module.
        leaf_types: types of the batch entries by value name, and of other values that can be poisoned.
        prelude: what comes before the program and is evaluated as it is; None if there is nothing.
    """

    objective: LossRoles
    program: Program
    parameters: Mapping[str, str]
    leaf_types: Mapping[str, torch.dtype] = field(default_factory=dict)
    prelude: Prelude | None = None

    @property
    def graph(self) -> Graph:
        """The captured graph, with what comes before the program."""
        return self.program.graph if self.prelude is None else self.prelude.graph

    @property
    def problems(self) -> tuple[str, ...]:
        """Why this loss cannot be certified."""
        problems = [*self.objective.problems, *self.program.problems]
        problems += [
            f"The loss reads the buffer `{name}`, and `training_step` changes it in place, so the data of one step "
            "reach the loss of another. Compute it before training."
            for name in sorted(self.program.graph.written & set(self.program.graph.buffers.values()))
            if not self.objective.problems and not self.program.problems
        ]
        if not problems and not any(term.value in self.objective.trainable for term in self.objective.terms):
            problems.append(
                "The loss that `training_step` returns trains no parameter: it reads none, or those that it reads are "
                "frozen or detached. Return the loss of the network's outputs, leave out `detach` and `no_grad`, and "
                "train a parameter by `requires_grad_(True)`."
            )
        return tuple(dict.fromkeys(problems))

    def inputs(
        self,
        module: nn.Module,
        batch: object,
        parameters: Mapping[str, Interval],
        dtype: torch.dtype,
        state: RandomState | None = None,
    ) -> dict[str, Value]:
        """Every input of the graph: parameter bounds, the module's buffers, the batch as it is, and dropout masks.

        Args:
            module: owner of the buffers.
            batch: a batch of the captured structure.
            parameters: bounds by parameter name; and by name those of buffers that training has moved.
            dtype: floating point type to compute in.
            state: the generators' state when the training step began; needed for dropout alone.

        Raises:
            UncertifiableError: if there is dropout and no state.
        """
        graph = self.program.graph
        leaves, _ = flatten(batch)
        values = graph_inputs(graph, module, self.parameters, parameters, dtype)
        for name, position in graph.leaves.items():
            values[name] = self._leaf(name, leaves[position].detach(), dtype)
        counted = {
            name: factor.factors(leaves[graph.leaves[factor.labels]], dtype)
            for name, factor in graph.masks.items()
            if isinstance(factor, CountedLabels)
        }
        masks = self._masks(self.size(batch), next(iter(parameters.values())).device, state)
        dropped = {name: mask.to(dtype) for name, mask in masks.items() if isinstance(graph.masks[name], Mask)}
        values |= {name: Interval.point(factor, nonnegative=True) for name, factor in (counted | dropped).items()}
        values |= {name: _value(numbers, dtype) for name, numbers in masks.items() if name not in dropped}
        if self.prelude is None:
            return values
        _require_points(self.prelude.parameters, parameters, module)
        given = self.prelude.values(module, [leaf.detach() for leaf in leaves], masks)
        return values | {name: _value(tensor, dtype) for name, tensor in given.items()}

    def evaluated_statistics(
        self, module: nn.Module, batch: object, dtype: torch.dtype, state: RandomState | None = None
    ) -> tuple[StatisticsUpdate, ...]:
        """Bound how what is evaluated as it is moves running statistics; arguments as for `inputs`."""
        if self.prelude is None or not self.prelude.running:
            return ()
        leaves, _ = flatten(batch)
        masks = self._masks(self.size(batch), next(module.parameters()).device, state)
        values = self.prelude.all_values(module, [leaf.detach() for leaf in leaves], masks)
        return tuple(evaluated_update(running, values[name], dtype) for name, running in self.prelude.running)

    def _masks(self, samples: int, device: torch.device, state: RandomState | None) -> Mapping[str, Tensor]:
        masks = {name: mask for name, mask in self.program.graph.masks.items() if isinstance(mask, Mask | Draw)}
        if not masks:
            return {}
        if state is None:
            raise UncertifiableError(
                ["The loss draws random numbers, as dropout does, from an unknown state. Leave them out (`p=0`)."]
            )
        captured = self.program.graph.shapes[_leaf_of_samples(self.program)][0]
        return draw_masks(masks_of_size(masks, captured, samples), device, state)

    def _leaf(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Value:
        if self.objective.label_kinds.get(name) is LabelKind.CLASS:
            return tensor if tensor.is_floating_point() else ClassLabels(tensor)
        return _value(tensor, dtype)

    def size(self, batch: object) -> int:
        """Number of samples of a batch of this structure."""
        leaves, _ = flatten(batch)
        return next(
            (
                leaves[position].shape[0]
                for name, position in self.program.graph.leaves.items()
                if name in self.objective.samples
            ),
            0,
        )

    def counts(self, samples: int) -> bool:
        """Return whether this was recorded on so many samples, and not on those of a single sample twice."""
        names = [name for name in self.program.graph.leaves if name in self.objective.samples]
        return all(self.program.graph.shapes[name][:1] == (samples,) for name in names)

    def sample_entries(self, batch: object) -> list[Tensor]:
        """Return all that the loss reads of samples, from a batch of this structure."""
        leaves, _ = flatten(batch)
        graph_leaves = self.program.graph.leaves.items()
        return [leaves[position].detach() for name, position in graph_leaves if name in self.objective.samples]

    @cached_property
    def _rounded(self) -> dict[tuple[torch.dtype, Floats], BoundedObjective]:
        return {}

    def rounded(self, own: torch.dtype, floats: Floats) -> BoundedObjective:
        """Return the same loss with bounds that also contain its values in floating point, in any order of summation.

        Args:
            own: floating point type in which bounds are computed.
            floats: whether the program runs in its own types, or in real arithmetic.
        """
        if (own, floats) not in self._rounded:
            self._rounded[own, floats] = replace(self, program=self.program.with_rounding(own, floats))
        return self._rounded[own, floats]

    @property
    def skipped(self) -> frozenset[str]:
        """Values that no gradient needs: the totals, and terms that nothing else reads."""
        reduced = self.objective.reduced
        graph = self.program.graph
        terms = {
            term.value for term in self.objective.terms if all(user.name in reduced for user in graph.users(term.value))
        }
        return frozenset(reduced | terms)

    def sample_weight(self, batch_size: int) -> float:
        """Weight w > 0 of each sample: the loss is ``Σ_i w ℓ_i`` (1/b for a mean)."""
        term = self.objective.terms[0]
        return abs(term.coefficient) / (batch_size if term.mean else 1)

    def seeds(self, values: Mapping[str, Value], batch_size: int, dtype: torch.dtype) -> dict[str, Interval]:
        """Gradient of the per-sample loss ℓ_i with respect to each term's value, and to penalties.

        A penalty r of parameters alone is part of the loss of every sample, ``Σ_i w (ℓ_i + r / (w b))``: its gradient
        is the same for all, and no poison reaches it.

        Args:
            values: values by name, for shapes and device.
            batch_size: size of the whole batch, of which ``values`` may hold a part.
            dtype: floating point type to compute in.
        """
        weight = self.sample_weight(batch_size)
        seeds: dict[str, Interval] = {}
        slopes: dict[str, list[float]] = {}
        samples, device = sample_count(self.program, values), _tensor(values[_leaf_of_samples(self.program)]).device
        for term in self.objective.terms:
            shape = (samples, *self.program.graph.shapes[term.value][1:])
            count = batch_size * torch.Size(shape[1:]).numel() if term.mean else 1
            slope = term.coefficient / count / weight
            seed = Interval.point(torch.full(shape, slope, dtype=dtype, device=device), nonnegative=slope >= 0)
            slopes.setdefault(term.value, []).append(slope)
            seeds[term.value] = seeds[term.value] + seed if term.value in seeds else seed
        seeds = {name: self._rounded_seed(name, seed, slopes[name]) for name, seed in seeds.items()}
        for name, coefficient in self.objective.penalties.items():
            slope = coefficient / (weight * batch_size)
            share = Interval.point(torch.full((samples,), slope, dtype=dtype, device=device))
            seeds[name] = self._rounded_seed(name, share, [slope, slope])
        return seeds

    def _rounded_seed(self, name: str, seed: Interval, slopes: Sequence[float]) -> Interval:
        """Widen a sum of several slopes, which may cancel; a single one is a factor like others, see `StepSums`."""
        if len(slopes) == 1 or self.program.floats is None:
            return seed
        kind = next((call.dtype for call in self.program.graph.calls if call.name == name), seed.dtype)
        arithmetic = Arithmetic(kind if self.program.floats == "run" else None, seed.dtype)
        roundings = 2 * len(self.objective.reduced) + len(slopes) + 8
        return seed.widened(sum(map(abs, slopes)) * arithmetic.relative(roundings))

    @cached_property
    def dependent(self) -> frozenset[str]:
        """Names of all values that change when trained parameters change, detached copies included.

        So are those behind statistics of a batch, which change for all its samples when one is poisoned.
        """
        trained = {name for name in self.parameters if name in self.objective.trainable}
        return reached(self.program.graph, trained | self.program.mixing)

    @cached_property
    def frozen_layers(self) -> frozenset[str]:
        """Names of the values of samples that depend on parameters, none of which is trained."""
        layers = reached(self.program.graph, set(self.program.graph.parameters)) & self.program.samples
        return layers - self.dependent - self.skipped

    @cached_property
    def inside_frozen_layers(self) -> frozenset[str]:
        """Names of those of them that frozen layers alone read, so that nothing else needs their bounds."""
        layers, users = self.frozen_layers, self.program.graph.users
        return frozenset(name for name in layers if all(user.name in layers for user in users(name)))

    def _unread(self, known: Mapping[str, Value]) -> frozenset[str]:
        """Values inside frozen layers that nothing reads, since the values behind them are known."""
        read: set[str] = set()
        unread: set[str] = set()
        for call in reversed(self.program.graph.calls):
            if call.name in known or call.name in self.skipped:
                continue
            if call.name in self.inside_frozen_layers and call.name not in read:
                unread.add(call.name)
            else:
                read.update(call.inputs)
        return frozenset(unread)

    def computed(self, known: Mapping[str, Value]) -> frozenset[str]:
        """Return the names of the values that `forward` computes.

        Args:
            known: values that were computed before.
        """
        calls = {call.name for call in self.program.graph.calls}
        return frozenset(calls - known.keys() - self.skipped - self._unread(known))

    def forward(
        self,
        inputs: Mapping[str, Value],
        known: Mapping[str, Value] | None = None,
        within: Mapping[str, Interval] | None = None,
        method: Method = "ibp",
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
    ) -> dict[str, Value]:
        """Bounds of every value that gradients need; of frozen layers, what the known values do not replace.

        Args:
            inputs: parameters, buffers, constants and batch leaves by value name.
            known: values that were computed before on the same inputs.
            within: other bounds on some values, which theirs are intersected with.
            method: how bounds are propagated.
            memory_budget: bytes for the coefficients of linear bounds.
        """
        refine = refinement(method, self.program, self.skipped, memory_budget=memory_budget)
        skip = self.skipped | self._unread(known or {})
        return propagate_forward(self.program, inputs, skip=skip, known=known, within=within, refine=refine)

    def gradients(
        self, values: Mapping[str, Value], batch_size: int, dtype: torch.dtype
    ) -> dict[str, FactoredGradient]:
        """Bounds on each sample's gradient, by canonical parameter name."""
        return self.named(propagate_backward(self.program, values, self.seeds(values, batch_size, dtype)))

    def named(self, gradients: Mapping[str, FactoredGradient]) -> dict[str, FactoredGradient]:
        """Return gradients by canonical parameter name, given by value name."""
        return {self.parameters[value]: gradient for value, gradient in gradients.items()}

    def poisoned(self, values: Mapping[str, Value], adversary: Adversary, rows: Tensor | None) -> dict[str, Value]:
        """Inputs of the second pass: those of poisonable samples, within the adversary's balls.

        Args:
            values: all values of the first pass.
            adversary: the threat model.
            rows: positions of the poisonable samples; None means all.
        """
        graph, objective = self.program.graph, self.objective
        inputs: dict[str, Value] = {}
        for name in (*graph.parameters, *graph.buffers, *graph.constants, *graph.leaves, *graph.masks, *graph.given):
            inputs[name] = select(values[name], rows) if name in objective.samples else values[name]
        if adversary.perturbs_features:
            for name in objective.features:
                inputs[name] = self._stored(name, inputs[name], adversary.poisoned_features(inputs[name]))
        if adversary.perturbs_labels:
            for name in objective.labels:
                inputs[name] = self._stored(name, inputs[name], self._moved_labels(adversary, name, inputs[name]))
        return inputs

    def _moved_labels(self, adversary: Adversary, name: str, labels: Value) -> Value:
        """Return all labels that the adversary can make; of both ends where the type of the bounds rounds the data."""
        kind = self.objective.label_kinds[name]
        moved = adversary.poisoned_labels(_tensor(labels), kind)
        if not isinstance(labels, Interval) or labels.is_point or not isinstance(moved, Interval):
            return moved
        return moved.hull(as_interval(adversary.poisoned_labels(labels.upper, kind)))

    def _stored(self, name: str, clean: Value, moved: Value) -> Value:
        """Return what the adversary makes of an entry, as the entry's type can hold it."""
        kind = self.leaf_types.get(name)
        if not isinstance(moved, Interval) or kind is None or not kind.is_floating_point:
            return moved
        return as_stored(moved, _tensor(clean).to(moved.dtype), kind)

    def perturbed_leaves(self, adversary: Adversary) -> set[str]:
        """Batch entries whose poisoned values differ from the clean ones."""
        features = set(self.objective.features) if adversary.perturbs_features else set()
        return features | (set(self.objective.labels) if adversary.perturbs_labels else set())


def _require_points(read: Collection[str], parameters: Mapping[str, Interval], module: nn.Module) -> None:
    """Require that no parameter has been trained that is evaluated as it is.

    Raises:
        UncertifiableError: naming one that has.
    """
    names = canonical_names(module)
    moved = sorted(name for name in read if not parameters[names[name]].is_point)
    if moved:
        raise UncertifiableError(
            [
                f"`{moved[0]}` is frozen now, but was trained before, so it has bounds, and some calls that read it "
                "have no rules. Freeze it from the start, or train it to the end."
            ]
        )


def canonical_names(module: nn.Module) -> dict[str, str]:
    """Return the name that `named_parameters` gives each parameter, by every name it has, tied ones included."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    return {name: first[id(parameter)] for name, parameter in module.named_parameters(remove_duplicate=False)}


def graph_inputs(
    graph: Graph,
    module: nn.Module,
    names: Mapping[str, str],
    parameters: Mapping[str, Interval],
    dtype: torch.dtype,
) -> dict[str, Value]:
    """Return the inputs of a captured graph besides the batch: parameters, buffers and constants, by value name.

    Args:
        graph: captured from ``module``.
        module: owner of the buffers.
        names: names of parameters in the module by value name.
        parameters: bounds by parameter name; and by name those of buffers that training has moved.
        dtype: floating point type to compute in.
    """
    buffers = dict(module.named_buffers(remove_duplicate=False))
    fixed = {name: buffers[target] for name, target in graph.buffers.items()} | dict(graph.constants)
    values: dict[str, Value] = {name: _value(tensor, dtype) for name, tensor in fixed.items()}
    values |= {name: parameters[target] for name, target in graph.buffers.items() if target in parameters}
    return values | {value: parameters[name] for value, name in names.items()}


def signature(module: nn.Module, batch: object) -> Hashable:
    """Return all that captured code can depend on: layout and types of a batch, modes and trained parameters.

    Random numbers in the shape of an entry are drawn in the order of its memory.
    """
    leaves, _ = flatten(batch)
    shapes = tuple((tuple(leaf.shape), _order(leaf), leaf.dtype) for leaf in leaves)
    modes = tuple(submodule.training for submodule in module.modules())
    return shapes, modes, tuple(parameter.requires_grad for parameter in module.parameters())


def _order(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of axes with more than one element; those of others may be anything."""
    return tuple(step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)


Recorded = TypeVar("Recorded")


class ProgramCache(Generic[Recorded]):
    """Captured programs, each recorded when a batch of its kind comes for the first time.

    Args:
        record: captures a batch.
        kind: returns equal values for batches that share a program.

    Example:
        >>> cache = ProgramCache(record=lambda batch: f"program of {batch}", kind=len)
        >>> cache("ab"), cache("cd"), cache("abc")
        ('program of ab', 'program of ab', 'program of abc')
    """

    def __init__(self, record: Callable[[Any], Recorded], kind: Callable[[Any], Hashable]) -> None:
        self._record = record
        self._kind = kind
        self._recorded: dict[Hashable, Recorded] = {}

    def __call__(self, batch: object) -> Recorded:
        """Return the program for a batch; whatever its recording raises is raised."""
        kind = self._kind(batch)
        if kind not in self._recorded:
            self._recorded[kind] = self._record(batch)
        return self._recorded[kind]

    def forget(self) -> None:
        """Drop all programs, so that the next batch of each kind is recorded again."""
        self._recorded.clear()


def _tensor(value: Value) -> Tensor:
    if isinstance(value, ClassLabels):
        return value.index
    return value if isinstance(value, Tensor) else value.lower


def _value(tensor: Tensor, dtype: torch.dtype) -> Value:
    return Interval.point(tensor.detach()).to(dtype=dtype) if tensor.is_floating_point() else tensor


def sample_count(program: Program, values: Mapping[str, Value]) -> int:
    """Return the number of samples in given values of a program.

    Args:
        program: with at least one batch entry that has samples.
        values: of its batch entries, by name.
    """
    return len(_tensor(values[_leaf_of_samples(program)]))


def _leaf_of_samples(program: Program) -> str:
    return next(name for name in program.graph.leaves if name in program.samples)
