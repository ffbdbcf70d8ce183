"""The nominal part of a step: values, gradients and samples at the module's own parameters, on the data as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.base import inserts_and_deletes
from agt_lightning.aggregation import BatchEdits, Clipping, SampleSet, bounded_descent, clipped_mean
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.distributed import Entry, ProcessGroup
from agt_lightning.domains import Step
from agt_lightning.engine.duplicates import require_distinct, require_once, sample_keys
from agt_lightning.engine.self_checks import Tolerance
from agt_lightning.errors import UncertifiableError
from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval
from agt_lightning.memory import fitting_memory_budget
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.propagation.passes import BoundedBatch, poisonable_at_all, propagate_nominal
from agt_lightning.propagation.prefix import PoisonedPrefix, frozen_values
from agt_lightning.propagation.samples import (
    MicroBatch,
    ids_of_samples,
    poisonable_rows,
    sample_set,
    sample_weights,
    sources_of_samples,
    stacked,
)
from agt_lightning.propagation.sizes import SizeWeights, weights_of
from agt_lightning.rounding import accumulated_roundoff
from agt_lightning.rules import Value


@dataclass(frozen=True)
class LocalGradients:
    """The samples of this process in a step, with their gradients at the module's own parameters.

    Args:
        gradients: gradients of all samples, by parameter name.
        samples: weights of these samples in the step's loss over all processes, and which of them can be poisoned.
        keys: integers that identify samples across processes, (b,); None if nothing compares them.
        budget: memory for temporary tensors, in bytes.
    """

    gradients: Mapping[str, FactoredGradient]
    samples: SampleSet
    keys: Tensor | None
    budget: int

    def sum(self, name: str) -> Interval:
        """Bound this process's share of a parameter's gradient; a point unless rounding was followed."""
        return bounded_descent(self.gradients[name], None, self.samples, 0, self.budget)

    def clipped_sum(self, name: str, clipping: Clipping) -> Tensor:
        """Return this process's share of a parameter's gradient if each sample's gradient is clipped."""
        return clipped_mean(self.gradients[name], self.samples.weights, clipping, self.budget)

    def magnitude(self, name: str) -> Tensor:
        """Return the sum of magnitudes, a scalar, to which the rounding errors of this process's share are relative."""
        weights = self.samples.weights
        return weights.new_tensor(self.gradients[name].scale(weights))


@dataclass(frozen=True)
class NominalPass:
    """An evaluator of optimizer steps at the module's own parameters.

    Args:
        module: the module in training.
        adversary: the threat model; of several, the first one.
        objectives: returns the captured loss of a batch.
        config: type and memory of the computation; which samples can be poisoned, and their names.
        processes: the group that makes a step together, each process with its own micro-batches.
        drawn_once: whether no sample is drawn twice for a step; if not, samples without names are compared by content.
    """

    module: nn.Module
    adversary: Adversary
    objectives: Callable[[MicroBatch], BoundedObjective]
    config: CertificationConfig
    processes: ProcessGroup
    drawn_once: bool = True

    @cached_property
    def sizes(self) -> SizeWeights:
        """Weights of samples in batches that an adversary has made larger or smaller."""
        return SizeWeights(self.objectives)

    def step(self, batches: Sequence[MicroBatch], scale: float) -> tuple[Step, LocalGradients]:
        """Return the step, and the gradients of this process's samples.

        Args:
            batches: the micro-batches of this process.
            scale: factor in front of each micro-batch's loss.

        Raises:
            UncertifiableError: in every process, if a poisonable sample is in the step twice, or if processes train
                different parameters.
        """
        scale = scale / self.processes.size
        with self.processes.collective_errors():
            with record_function("agt: nominal pass"):
                frozen = [self._frozen(batch) for batch in batches]
                passes = [self._propagate(*each) for each in zip(batches, frozen, strict=True)]
            parts = [
                self._part(batch, values, same)
                for batch, (values, _), same in zip(batches, passes, frozen, strict=True)
            ]
            local = self._local(parts, [gradients for _, gradients in passes], scale)
            sums = {name: local.sum(name).lower for name in local.gradients}
            edits = self._edits(self.adversary, parts, local.samples, scale)
        samples = all_samples(self.processes, local)
        gradient = self.processes.sum(sums)
        step = Step(self.module, self.adversary, tuple(parts), scale, samples, gradient, self.processes, edits)
        return step, local

    def against(self, step: Step, adversary: Adversary) -> Step:
        """Return a step with another adversary of the same training; what both have in common is taken over.

        Args:
            step: from `step`, or from `against` with an earlier adversary.
            adversary: with the same clipping of each sample's gradient.
        """
        if adversary is step.adversary:
            return step
        parts = [
            replace(
                part,
                poisoned_prefix=self._prefix(
                    part.bounded, part.frozen, part.poisonable, adversary, part.poisoned_prefix
                ),
            )
            for part in step.parts
        ]
        with self.processes.collective_errors():
            edits = self._edits(adversary, parts, step.samples, step.scale)
        return replace(step, adversary=adversary, parts=tuple(parts), edits=edits)

    def rounded_gradient(
        self, name: str, batches: Sequence[MicroBatch], scale: float
    ) -> tuple[Interval, dict[str, Tolerance]]:
        """Bound one parameter's gradient with training's rounding followed through every call.

        A unit whose input is zero in real arithmetic can be on or off in floating point; this bound contains both.

        Args:
            name: the parameter's.
            batches: the micro-batches of this process.
            scale: factor in front of each micro-batch's loss.

        Returns:
            The interval, and the tolerance for the sum over samples, whose rounding it does not contain.
        """
        step, local = self.step(batches, scale)
        with self.processes.collective_errors():
            gradient = stacked([self._followed(batch) for batch in batches])[name]
            # Sums in a coarser type than the parameter's, which the tolerance is for: see `PulledBack`.
            kinds = Arithmetic(self.module.get_parameter(name).dtype, self.config.dtype)
            summed = gradient.rounded(kinds, len(step.samples.weights))
            wide = LocalGradients({name: summed}, local.samples, local.keys, local.budget)
            bounds = wide.sum(name)
        sums = self.processes.sum({"lower": bounds.lower, "upper": bounds.upper})
        return Interval.trusted(sums["lower"], sums["upper"]), self.tolerances(wide, step.samples)

    def clipped_gradient(self, local: LocalGradients) -> dict[str, Tensor] | None:
        """Return the mean of gradients clipped per sample (Algorithm 1, line 6); None if the adversary needs none."""
        rule = self.adversary.sample_clipping
        if rule is None:
            return None
        clipping = rule.fitted(list(local.gradients.values()))
        return self.processes.sum({name: local.clipped_sum(name, clipping) for name in local.gradients})

    def tolerances(self, local: LocalGradients, samples: SampleSet) -> dict[str, Tolerance]:
        """Return bounds on the rounding of a float program's sums over samples and processes, by parameter name."""
        parameters = dict(self.module.named_parameters())
        terms = len(samples.weights) + self.processes.size + sum(max(p.shape, default=1) for p in parameters.values())
        relative = {name: accumulated_roundoff(terms, parameters[name].dtype) for name in local.gradients}
        if self.processes.size == 1:  # the magnitudes cost a pass over all gradients: only on demand
            return {name: Tolerance(relative[name], partial(_magnitude, local, name)) for name in local.gradients}
        magnitudes = self.processes.sum({name: local.magnitude(name) for name in local.gradients})
        return {name: Tolerance(relative[name], partial(float, size)) for name, size in magnitudes.items()}

    def _frozen(self, batch: MicroBatch) -> dict[str, Value]:
        bounded = self.objectives(batch).rounded(self.config.dtype, self.config.floats)
        keep_all = self.config.method != "ibp"
        return frozen_values(bounded, self.module, batch, self.config.dtype, self._budget(), keep_all=keep_all)

    def _propagate(
        self, batch: MicroBatch, frozen: Mapping[str, Value]
    ) -> tuple[dict[str, Value], dict[str, FactoredGradient]]:
        """Return values and per-sample gradients."""
        return propagate_nominal(self.objectives(batch), self.module, batch, self.config.dtype, frozen)

    def _followed(self, batch: MicroBatch) -> dict[str, FactoredGradient]:
        """Bound per-sample gradients with training's rounding followed through every call."""
        objective = self.objectives(batch).rounded(self.config.dtype, "run")
        return propagate_nominal(objective, self.module, batch, self.config.dtype)[1]

    def _part(self, batch: MicroBatch, values: Mapping[str, Value], frozen: Mapping[str, Value]) -> BoundedBatch:
        bounded = self.objectives(batch).rounded(self.config.dtype, self.config.floats)
        size = bounded.size(batch.data)
        rows = poisonable_rows(self.config.poisonable, batch.data, size, self._device)
        prefix = self._prefix(bounded, frozen, rows, self.adversary)
        ids = ids_of_samples(self.config.sample_ids, batch.data, size)
        whose = sources_of_samples(self.config.sources, batch.data, size, self._device)
        return BoundedBatch(bounded, batch, rows, values, prefix, ids, frozen, whose)

    def _prefix(
        self,
        bounded: BoundedObjective,
        frozen: Mapping[str, Value],
        rows: Tensor | None,
        adversary: Adversary,
        earlier: PoisonedPrefix | None = None,
    ) -> PoisonedPrefix | None:
        """Return the frozen prefix of poisoned samples; None if the adversary can change nothing."""
        if not poisonable_at_all(bounded, adversary, rows):
            return None
        return PoisonedPrefix(bounded, frozen, adversary, rows, self._budget(), earlier)

    def _edits(
        self, adversary: Adversary, parts: Sequence[BoundedBatch], samples: SampleSet, scale: float
    ) -> BatchEdits | None:
        """Return the insertions and deletions that an adversary can make; None if it makes none."""
        if not inserts_and_deletes(adversary):
            return None
        if self.processes.size > 1 or len(parts) != 1:
            raise UncertifiableError(
                [
                    "Insertions and deletions are covered for steps on one batch in one process, whose samples have "
                    'one weight. Use `accumulate_grad_batches=1` and `devices=1`, or `edits="replace"`.'
                ]
            )
        changes = BatchEdits.changes(adversary.n, samples.poisonable_count)
        return BatchEdits(adversary.n, weights_of(self.sizes(parts[0].batch, changes), scale))

    def _local(
        self, parts: Sequence[BoundedBatch], gradients: Sequence[Mapping[str, FactoredGradient]], scale: float
    ) -> LocalGradients:
        weights = [sample_weights(part.bounded, part.batch, scale, self.config.dtype, self._device) for part in parts]
        samples = sample_set(weights, [part.poisonable for part in parts], [part.sources for part in parts])
        keys = None
        named = self.config.sample_ids is not None
        if self.processes.size > 1 or named or not self.drawn_once:
            keys = torch.cat([sample_keys(part.bounded, part.batch.data, part.sample_ids) for part in parts])
        if keys is not None and (named or not self.drawn_once):
            require_once(keys if samples.poisonable is None else keys[samples.poisonable.to(keys.device)], named=named)
        return LocalGradients(stacked(gradients), samples, keys, self._budget())

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def _budget(self) -> int:
        return fitting_memory_budget(self.config.memory_budget, self._device)


def all_samples(processes: ProcessGroup, local: LocalGradients) -> SampleSet:
    """Return the samples of all processes, by rank.

    Raises:
        UncertifiableError: in every process, if processes share a poisonable sample or train different parameters.
    """
    if processes.size == 1:
        return local.samples
    poisonable = local.samples.poisonable
    assert local.keys is not None
    message: dict[str, Entry] = {"weights": local.samples.weights, "keys": local.keys}
    message["parameters"] = json.dumps(sorted(local.gradients))
    if poisonable is not None:
        message["poisonable"] = poisonable
    if local.samples.sources is not None:
        message["sources"] = local.samples.sources
    received = processes.gather(message)
    if len({str(part["parameters"]) for part in received}) > 1:
        raise UncertifiableError(
            ["The processes of a step use different parameters. Use the same code in all of them."]
        )
    weights = [_tensor(part["weights"]) for part in received]
    positions = [
        _tensor(part["poisonable"]) if "poisonable" in part else torch.arange(len(each), device=each.device)
        for part, each in zip(received, weights, strict=True)
    ]
    require_distinct([_tensor(part["keys"])[chosen] for part, chosen in zip(received, positions, strict=True)])
    named = [_tensor(part["sources"]) for part in received if "sources" in part]
    whose = torch.cat(named) if named else None
    if all("poisonable" not in part for part in received):
        return SampleSet(torch.cat(weights), sources=whose)
    starts = torch.tensor([0, *(len(each) for each in weights)]).cumsum(0).tolist()
    shifted = [start + chosen for start, chosen in zip(starts, positions, strict=False)]
    return SampleSet(torch.cat(weights), torch.cat(shifted), whose)


def average_gradients(module: nn.Module, processes: ProcessGroup) -> None:
    """Replace each gradient by its mean over the processes, as `DistributedDataParallel` does."""
    if processes.size == 1:
        return
    parameters = dict(module.named_parameters())
    used = processes.union(name for name, parameter in parameters.items() if parameter.grad is not None)
    local = {name: _gradient(parameters[name]) for name in used}
    for name, total in processes.sum(local).items():
        parameters[name].grad = total / processes.size


def _magnitude(local: LocalGradients, name: str) -> float:
    return float(local.magnitude(name))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _tensor(entry: Entry) -> Tensor:
    assert isinstance(entry, Tensor)
    return entry
