"""A step as the ball domain sees it: samples, targets and poison of all micro-batches, one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.adversaries import Adversary, BoundedAdversary
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.samples import Poison, Samples
from agt_lightning.domains.base import Step
from agt_lightning.domains.head_loss import HeadLossPattern
from agt_lightning.domains.losses import LabelPerturbation, Target
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation.objective import select
from agt_lightning.propagation.passes import BoundedBatch, ValueBounds
from agt_lightning.rules.base import Value, as_interval


@dataclass(frozen=True)
class HeadView:
    """One micro-batch.

    Args:
        part: the micro-batch.
        objective: the form of its loss.
        known: bounds of another domain on the results of the head's layers; empty without one.
    """

    part: BoundedBatch
    objective: HeadLossPattern
    known: ValueBounds

    @property
    def samples(self) -> Samples:
        """At the nominal parameters."""
        nominal, names = self.part.nominal, [layer.output for layer in self.objective.head.layers]
        boxes = tuple(self.known.clean[name] for name in names) if self.known.clean else None
        inputs = as_interval(nominal[self.objective.head.input]).lower
        return Samples(inputs, tuple(as_interval(nominal[name]).lower for name in names), boxes)

    @property
    def poisoned_boxes(self) -> tuple[Interval, ...] | None:
        """Bounds of another domain on the layers' results for poisoned samples."""
        names = [layer.output for layer in self.objective.head.layers]
        return tuple(self.known.poisoned[name] for name in names) if self.known.poisoned else None

    def moves(self, adversary: Adversary) -> Perturbation | None:
        """How far the adversary moves what enters the head; None if it stays."""
        name = self.objective.head.input
        clean = as_interval(self.part.nominal[name]).lower
        raw = name in self.part.bounded.objective.features
        if raw and isinstance(adversary, BoundedAdversary) and adversary.bounds is None:
            epsilon = adversary.feature_radius(clean)
            ball = None if adversary.p == math.inf else epsilon
            return Perturbation(epsilon[None], ball, adversary.p) if adversary.perturbs_features else None
        assert self.part.frozen is not None
        poisoned = as_interval(self.part.frozen[name])
        if poisoned.is_point:
            return None
        return Perturbation.between(clean if self.part.rows is None else clean[self.part.rows], poisoned)

    @property
    def targets(self) -> Target:
        """As they are, one row per sample."""
        return _target(self.part.nominal[self.objective.target])


def joined_samples(views: Sequence[HeadView]) -> Samples:
    """Samples of all micro-batches."""
    parts = [view.samples for view in views]
    if len(parts) == 1:
        return parts[0]
    boxes = [part.boxes for part in parts if part.boxes is not None]
    return Samples(
        torch.cat([part.inputs for part in parts]),
        tuple(torch.cat(values) for values in zip(*(part.layers for part in parts), strict=True)),
        _joined_boxes(boxes) if len(boxes) == len(parts) else None,
    )


def joined_targets(views: Sequence[HeadView]) -> Target:
    """Targets of all micro-batches."""
    return _joined([view.targets for view in views])


def joined_poison(views: Sequence[HeadView], step: Step) -> Poison | None:
    """What the adversary can do to the poisonable samples of all micro-batches; None if nothing."""
    touched = [view for view in views if view.part.frozen is not None]
    if not touched:
        return None
    rows = step.samples.poisonable
    every = torch.arange(len(step.samples.weights), device=step.samples.weights.device)
    boxes = [view.poisoned_boxes for view in touched]
    known = [box for box in boxes if box is not None]
    return Poison(
        rows=every if rows is None else rows,
        n=step.adversary.n,
        labels=_joined_labels(touched, step.adversary),
        moves=_joined_moves(touched, step.adversary),
        boxes=_joined_boxes(known) if len(known) == len(boxes) else None,
    )


def _joined_labels(views: Sequence[HeadView], adversary: Adversary) -> LabelPerturbation:
    clean, poisoned = [], []
    for view in views:
        name = view.objective.target
        assert view.part.frozen is not None
        clean.append(_target(select(view.part.nominal[name], view.part.rows)))
        poisoned.append(_target(view.part.frozen[name]))
    together = LabelPerturbation(_joined(clean), _joined(poisoned))
    radius = _label_radius(together, views[0].objective, adversary)
    return LabelPerturbation(together.clean, together.poisoned, radius)


def _label_radius(labels: LabelPerturbation, objective: HeadLossPattern, adversary: Adversary) -> float | None:
    """Where a change of labels is Euclidean shorter than the diagonal of its box."""
    if not isinstance(labels.poisoned, Interval) or not isinstance(adversary, BoundedAdversary):
        return None
    if objective.one_hot:  # a flip changes two entries
        return math.sqrt(2) * float(labels.poisoned.width.max())
    if adversary.q in (1, 2) and objective.target_is_label:
        return adversary.nu
    return None


def _joined_moves(views: Sequence[HeadView], adversary: Adversary) -> Perturbation | None:
    moved = [view.moves(adversary) for view in views]
    known = [part for part in moved if part is not None]
    if len(known) < len(moved):  # the same code and adversary: features stay in all of them
        return None
    if len(known) == 1:
        return known[0]
    sizes = [view.part.size if view.part.rows is None else len(view.part.rows) for view in views]
    half_widths = [part.half_widths.expand(size, -1) for part, size in zip(known, sizes, strict=True)]
    return Perturbation(torch.cat(half_widths), known[0].scale, known[0].p)


def _target(value: Value) -> Target:
    if isinstance(value, ClassLabels):
        return value
    if isinstance(value, Tensor) and not value.is_floating_point():
        return ClassLabels(value)
    bounds = as_interval(value)
    flat = bounds.lower.reshape(len(bounds.lower), -1)
    return Interval.point(flat) if bounds.is_point else Interval.trusted(flat, bounds.upper.reshape(flat.shape))


def _joined(targets: Sequence[Target]) -> Target:
    first = targets[0]
    if len(targets) == 1:
        return first
    if isinstance(first, ClassLabels):
        index = torch.cat([target.index for target in targets if isinstance(target, ClassLabels)])
        return ClassLabels(index, first.flippable, first.sources, first.targets)
    return _joined_intervals([target for target in targets if isinstance(target, Interval)])


def _joined_boxes(boxes: Sequence[tuple[Interval, ...]]) -> tuple[Interval, ...]:
    return tuple(_joined_intervals(intervals) for intervals in zip(*boxes, strict=True))


def _joined_intervals(intervals: Sequence[Interval]) -> Interval:
    if len(intervals) == 1:
        return intervals[0]
    lower = torch.cat([part.lower for part in intervals])
    if all(part.is_point for part in intervals):
        return Interval.point(lower)
    return Interval.trusted(lower, torch.cat([part.upper for part in intervals]))
