"""Data of a step, collected from all micro-batches of all processes: every process takes the same step of the radius.

A micro-batch is a `Batch`, tensors and intervals by name, with one row per sample or per poisonable sample (m):

    inputs, layer/0, layer/1 ...           values at the nominal parameters
    input_error, target_error              how far inputs and targets as runs compute them are from these, (b,)
    bounds/0, bounds/1 ...                 bounds on the layers' results from another domain, if it has some
    target, or target/index + target/form  numbers, or class labels
    clean..., poisoned...                  the same of targets before and after poisoning, if samples can be poisoned
    label_radius, (1,)                     Euclidean limit on a change of labels, if it is tighter than the interval
    half_widths, (m, d) or (1, d), p       perturbation of features, if there is one
    scale, (1, d)                          the same for a ball of features
    poisoned_bounds/0 ...                  bounds on the layers' results for poisoned features
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from agt_lightning.adversaries import Adversary, BoundedAdversary
from agt_lightning.adversaries.base import counts_dataset, counts_sources
from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.capture import reached
from agt_lightning.distributed import Entry, ProcessGroup
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.step_data import Poison, Samples, StepData
from agt_lightning.domains.base import Step
from agt_lightning.domains.head_loss import HeadLossPattern
from agt_lightning.domains.losses import LabelPerturbation, Target
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation.passes import BoundedBatch, ValueBounds
from agt_lightning.rounding import accumulated_roundoff
from agt_lightning.rules.values import Value, as_interval, select

_MOST_COUNTED = 100
"""Samples of the data set that are counted over the steps of an epoch: a step then takes 5000 radii, under .1 s."""

Batch = Mapping[str, Entry]
"""A micro-batch, by the names above."""

_UPWARD = 1 + 2.0**-46
"""Above the rounding of a few of Python's own numbers."""

_Entry = TypeVar("_Entry", Tensor, Interval)


@dataclass(frozen=True)
class BatchView:
    """One micro-batch of this process, as the ball domain needs it.

    Args:
        part: the micro-batch.
        objective: the form of its loss.
        bounds: of another domain on the results of the head's layers; empty without one.
    """

    part: BoundedBatch
    objective: HeadLossPattern
    bounds: ValueBounds

    def batch(self, adversary: Adversary) -> Batch:
        """Return the micro-batch by names."""
        nominal, head = self.part.nominal, self.objective.head
        entries: dict[str, Entry] = {"inputs": as_interval(nominal[head.input]).lower}
        for number, layer in enumerate(head.layers):
            entries[f"layer/{number}"] = as_interval(nominal[layer.output]).lower
            if self.bounds.clean:
                entries[f"bounds/{number}"] = self.bounds.clean[layer.output]
        entries |= _target_entries("target", _target(nominal[self.objective.target]))
        entries["input_error"] = self._rounding(head.input)
        entries["target_error"] = self._rounding(self.objective.target)
        return entries if self.part.poisoned_prefix is None else entries | self._poison(adversary)

    def _rounding(self, name: str) -> Tensor:
        """Bound how far a frozen value of a run can be from the nominal one, Euclidean, (b,); zero for integers."""
        nominal, frozen = _target(self.part.nominal[name]), _target(self.part.frozen[name])
        if isinstance(nominal, ClassLabels) or isinstance(frozen, ClassLabels):
            return as_interval(self.part.nominal[self.objective.head.input]).lower.new_zeros(self.part.size)
        center = nominal.lower
        if frozen.is_point and torch.equal(frozen.lower, center):
            return center.new_zeros(len(center))
        farthest = torch.maximum(frozen.upper - center, center - frozen.lower).clamp(min=0)
        norm: Tensor = euclidean_norm(farthest, dim=1)
        return norm * (1 + accumulated_roundoff(center.shape[1] + 4, center.dtype))

    def _poison(self, adversary: Adversary) -> dict[str, Entry]:
        assert self.part.poisoned_prefix is not None
        name = self.objective.target
        clean = _target(select(self.part.nominal[name], self.part.poisonable))
        poisoned = _target(self.part.poisoned_prefix[name])
        entries = _target_entries("clean", clean) | _target_entries("poisoned", poisoned)
        radius = self._label_radius(poisoned, adversary)
        if radius is not None:
            entries["label_radius"] = torch.tensor([radius], dtype=torch.float64)
        entries |= _perturbation_entries(self._perturbation(adversary))
        for number, layer in enumerate(self.objective.head.layers if self.bounds.poisoned else ()):
            entries[f"poisoned_bounds/{number}"] = self.bounds.poisoned[layer.output]
        return entries

    def _label_radius(self, poisoned: Target, adversary: Adversary) -> float | None:
        """Return the largest Euclidean norm of a change of labels if it is less than the diagonal of its box."""
        if not isinstance(poisoned, Interval) or not isinstance(adversary, BoundedAdversary):
            return None
        if self.objective.one_hot:  # a flip changes two entries
            return math.sqrt(2) * float(poisoned.width.max()) * _UPWARD
        if adversary.q in (1, 2) and self.objective.target_is_label:
            return adversary.nu * _UPWARD + self._label_rounding(poisoned)
        return None

    def _label_rounding(self, poisoned: Interval) -> float:
        """Bound by how much labels as a loss reads them, clean and poisoned, can differ together from exact ones.

        Poisoned ones are rounded to the type in which the data are stored. Labels in another type are rounded once more
        on their way to the loss, clean ones and poisoned ones.
        """
        program, target = self.part.bounded.program, self.objective.target
        raw = target in self.part.bounded.objective.labels
        if raw and program.floats != "run":
            return 0.0
        return accumulated_roundoff(8, program.graph.types[target]) * float(
            euclidean_norm(poisoned.magnitude, dim=1).max()
        )

    def _perturbation(self, adversary: Adversary) -> Perturbation | None:
        """Return how far the adversary can move the features that enter the head; None if they stay."""
        name = self.objective.head.input
        clean = as_interval(self.part.nominal[name]).lower
        raw = name in self.part.bounded.objective.features
        if raw and isinstance(adversary, BoundedAdversary) and adversary.bounds is None:
            epsilon = adversary.feature_radius(clean)
            ball = None if adversary.p == math.inf else epsilon
            return Perturbation(epsilon[None], ball, adversary.p) if adversary.perturbs_features else None
        assert self.part.poisoned_prefix is not None
        bounded = self.part.bounded
        if name not in reached(bounded.program.graph, bounded.perturbed_leaves(adversary)):
            return None  # features of poisoned samples are rounded as those of clean ones
        poisoned = as_interval(self.part.poisoned_prefix[name])
        return Perturbation.between(clean if self.part.poisonable is None else clean[self.part.poisonable], poisoned)


def step_data(step: Step, batches: Sequence[Batch]) -> StepData:
    """Join the micro-batches of all processes, by rank.

    Args:
        step: the step, with weights and poisonable rows of all samples.
        batches: micro-batches of this process.

    Raises:
        UnsoundBoundError: if they differ in what the adversary can perturb.
    """
    everything = _gathered(step.processes, batches)
    layers = sum(name.startswith("layer/") for name in everything[0])
    values = tuple(_tensor(everything, f"layer/{number}") for number in range(layers))
    bounds = _layer_bounds(everything, "bounds", layers)
    errors = (_tensor(everything, name) for name in ("input_error", "target_error"))
    samples = Samples(_tensor(everything, "inputs"), values, bounds, *errors)
    poisonable = [batch for batch in everything if "clean" in batch or "clean/index" in batch]
    summands = max(len(_tensor([batch], "inputs")) for batch in everything) + 2 * len(everything)
    poison = _joined_poison(poisonable, step, layers)
    return StepData(samples, _joined_target(everything, "target"), poison, summands)


def counts_in_epochs(adversary: Adversary) -> bool:
    """Return whether the samples that an adversary changes are counted over the steps of an epoch.

    A sample is in one step of an epoch, but a source can be in all. What is computed grows with the square of n, so
    that n beyond `_MOST_COUNTED` are counted in each step, and so are samples that are replaced outright.

    Example:
        >>> from agt_lightning import BoundedAdversary
        >>> counts_in_epochs(BoundedAdversary(n=1, epsilon=0.1)), counts_in_epochs(BoundedAdversary(n=1, per="dataset"))
        (False, True)
    """
    return (
        isinstance(adversary, BoundedAdversary)
        and counts_dataset(adversary)
        and not counts_sources(adversary)
        and adversary.n <= _MOST_COUNTED
    )


def epoch_of(step: Step) -> int | None:
    """Return the epoch that a step belongs to; None if it is not known, or that each sample is in one step of it.

    Of several processes it is not known: each draws its samples once, but two can draw the same ones in other steps.
    """
    every = {part.batch.epoch for part in step.parts}
    return every.pop() if len(every) == 1 and step.processes.size == 1 else None


def names_of(step: Step) -> frozenset[int]:
    """Return the names of a step's samples in this process; none if they have no names.

    What one epoch draws twice under one name can be changed twice.
    """
    named = [part.sample_ids for part in step.parts if part.sample_ids is not None]
    return frozenset(name for names in named for name in names.tolist())


def _gathered(processes: ProcessGroup, batches: Sequence[Batch]) -> list[Batch]:
    if processes.size == 1:
        return list(batches)
    message = {f"{number}/{name}": entry for number, batch in enumerate(batches) for name, entry in batch.items()}
    everything: list[Batch] = []
    for received in processes.gather(message):
        split: dict[str, dict[str, Entry]] = {}
        for key, entry in received.items():
            number, name = key.split("/", 1)
            split.setdefault(number, {})[name] = entry
        everything += split.values()
    return everything


def _joined_poison(batches: Sequence[Batch], step: Step, layers: int) -> Poison | None:
    if not batches:
        return None
    _require_same_poison(batches)
    rows = step.samples.poisonable
    if rows is None:
        rows = torch.arange(len(step.samples.weights), device=step.samples.weights.device)
    radius = float(_tensor(batches, "label_radius").max()) if "label_radius" in batches[0] else None
    labels = LabelPerturbation(_joined_target(batches, "clean"), _joined_target(batches, "poisoned"), radius)
    bounds = _layer_bounds(batches, "poisoned_bounds", layers)
    return Poison(
        rows,
        step.adversary.n,
        labels,
        _joined_perturbation(batches),
        bounds,
        step.chosen.membership,
        per_epoch=counts_in_epochs(step.adversary),
    )


def _require_same_poison(batches: Sequence[Batch]) -> None:
    """Raise unless all batches have the same of these names, with the same text."""
    names = ("half_widths", "p", "scale", "label_radius", "clean/form", "poisoned/form")
    entries = [[batch.get(name) for name in names] for batch in batches]
    forms = [[entry if isinstance(entry, str) else entry is None for entry in values] for values in entries]
    if any(form != forms[0] for form in forms):
        raise UnsoundBoundError(
            "Expected the adversary to perturb features and labels of all micro-batches in the same way, but some "
            "differ. Give all processes the same adversary and loss."
        )


def _joined_perturbation(batches: Sequence[Batch]) -> Perturbation | None:
    if "half_widths" not in batches[0]:
        return None
    scale = _tensor(batches, "scale").amax(dim=0) if "scale" in batches[0] else None
    p = float(str(batches[0]["p"]))
    if len(batches) == 1:
        return Perturbation(_tensor(batches, "half_widths"), scale, p)
    rows = [_tensor([batch], "half_widths").expand(_count(batch), -1) for batch in batches]
    return Perturbation.of(torch.cat(rows), scale, p)


def _count(batch: Batch) -> int:
    """Return the number of poisonable samples."""
    clean = _joined_target([batch], "clean")
    return len(clean.index if isinstance(clean, ClassLabels) else clean.lower)


def _joined_target(batches: Sequence[Batch], name: str) -> Target:
    if name in batches[0]:
        return _joined_intervals(batches, name)
    form = json.loads(str(batches[0][f"{name}/form"]))
    sources, targets = (None if form[key] is None else tuple(form[key]) for key in ("sources", "targets"))
    return ClassLabels(_tensor(batches, f"{name}/index"), form["flippable"], sources, targets)


def _layer_bounds(batches: Sequence[Batch], name: str, layers: int) -> tuple[Interval, ...] | None:
    """Return the bounds of another domain on each layer's results; None unless every batch has them."""
    if any(f"{name}/0" not in batch for batch in batches):
        return None
    return tuple(_joined_intervals(batches, f"{name}/{number}") for number in range(layers))


def _tensor(batches: Sequence[Batch], name: str) -> Tensor:
    parts = _entries(batches, name, Tensor)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _joined_intervals(batches: Sequence[Batch], name: str) -> Interval:
    return Interval.cat(_entries(batches, name, Interval))


def _entries(batches: Sequence[Batch], name: str, kind: type[_Entry]) -> list[_Entry]:
    entries = [entry for batch in batches if isinstance(entry := batch[name], kind)]
    assert len(entries) == len(batches)
    return entries


def _target(value: Value) -> Target:
    """Return targets as class labels, or as numbers with one row per sample."""
    if isinstance(value, ClassLabels):
        return value
    if isinstance(value, Tensor) and not value.is_floating_point():
        return ClassLabels(value)
    return as_interval(value).rearranged(lambda bound: bound.reshape(len(bound), -1))


def _target_entries(name: str, target: Target) -> dict[str, Entry]:
    if isinstance(target, Interval):
        return {name: target}
    form = {"flippable": target.flippable, "sources": target.sources, "targets": target.targets}
    return {f"{name}/index": target.index, f"{name}/form": json.dumps(form)}


def _perturbation_entries(features: Perturbation | None) -> dict[str, Entry]:
    if features is None:
        return {}
    entries: dict[str, Entry] = {"half_widths": features.half_widths, "p": str(features.p)}
    return entries if features.scale is None else entries | {"scale": features.scale[None]}
