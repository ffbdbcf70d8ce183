"""How far an adversary can move the entries of a batch, as points to try a training step at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from agt_lightning.adversaries import Adversary
from agt_lightning.capture import LabelKind, LossRoles
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.rules import Value

_REPLACEMENT = 16.0
"""Largest magnitudes in the data by which entries are moved that an adversary replaces by anything."""


class Reach(Protocol):
    """The values that an adversary can give to a batch entry."""

    def toward(self, direction: Tensor, beyond: float = 0.0) -> Tensor:
        """Return the farthest of them in a direction, or a value beyond it.

        Args:
            direction: of the shape of the entry; only signs count.
            beyond: how much farther, in largest magnitudes of the entry.
        """


def reach(adversary: Adversary, roles: LossRoles, leaves: Sequence[Tensor]) -> dict[str, Reach]:
    """Return the reach of the adversary for each batch entry that it can move, by value name.

    Args:
        adversary: the threat model.
        roles: of the entries in the recorded loss.
        leaves: the tensors of the batch.
    """
    found = {}
    for name, position in roles.graph.leaves.items():
        value = _poisoned(adversary, roles, name, leaves[position].detach())
        if value is not None:
            found[name] = value
    return found


def _poisoned(adversary: Adversary, roles: LossRoles, name: str, leaf: Tensor) -> Reach | None:
    kind = roles.label_kinds[name] if name in roles.labels else None
    if adversary.sample_clipping is not None:
        return _replaced(kind, leaf) if kind is not None or name in roles.features else None
    if kind is not None:
        return _relabeled(adversary, kind, leaf) if adversary.perturbs_labels else None
    if name not in roles.features or not adversary.perturbs_features or not leaf.is_floating_point():
        return None
    return _limits(leaf, None, adversary.poisoned_features(Interval.point(leaf)))


def _relabeled(adversary: Adversary, kind: LabelKind, leaf: Tensor) -> Reach | None:
    """Return the labels that an adversary can write; numbers that it flips are those it names."""
    targets = getattr(adversary, "target_classes", None)
    if targets is None or kind is LabelKind.CLASS:
        return _limits(leaf, kind, adversary.poisoned_labels(leaf, kind))
    sources = getattr(adversary, "source_classes", None)
    return Classes(ClassLabels(leaf, flippable=True, sources=sources, targets=targets))


def _replaced(kind: LabelKind | None, leaf: Tensor) -> Reach | None:
    """Return the reach of an adversary that substitutes samples."""
    if kind is LabelKind.CLASS and not leaf.is_floating_point():
        return Classes(ClassLabels(leaf, flippable=True))
    if kind is LabelKind.BINARY:
        return Limits(leaf, torch.zeros_like(leaf), torch.ones_like(leaf), extends=False)
    if not leaf.is_floating_point() or not leaf.numel():
        return None
    radius = _REPLACEMENT * leaf.abs().max()
    return Limits(leaf, leaf - radius, leaf + radius)


def _limits(leaf: Tensor, kind: LabelKind | None, value: Value) -> Reach | None:
    if isinstance(value, ClassLabels):
        return Classes(value)
    if not isinstance(value, Interval) or not leaf.numel():
        return None
    return Limits(leaf, value.lower, value.upper, extends=kind is not LabelKind.BINARY)


class Limits:
    """A range of real numbers around each element.

    Args:
        clean: the entry as it is, of any shape.
        lower: smallest value, of the same shape.
        upper: largest value, of the same shape.
        extends: whether code can meet values beyond them, as it cannot for zeros and ones.

    Example:
        >>> limits = Limits(torch.zeros(2), torch.tensor([-1.0, -1.0]), torch.tensor([2.0, 2.0]))
        >>> limits.toward(torch.tensor([-1, 1]))
        tensor([-1.,  2.])
    """

    def __init__(self, clean: Tensor, lower: Tensor, upper: Tensor, *, extends: bool = True) -> None:
        self.clean, self.lower, self.upper, self.extends = clean, lower, upper, extends

    def toward(self, direction: Tensor, beyond: float = 0.0) -> Tensor:
        """Return the end of the range in the direction, or a value beyond it; see `Reach`."""
        end = torch.where(direction < 0, self.lower, self.upper).to(self.clean.dtype)
        if not beyond or not self.extends:
            return end
        return end + beyond * torch.where(direction < 0, -1, 1) * self.clean.abs().max()


class Classes:
    """The classes that each label can become, of those in the batch or of the adversary's targets.

    Args:
        labels: as the adversary can change them.

    Example:
        >>> Classes(ClassLabels(torch.tensor([0, 2, 5]), flippable=True)).toward(torch.tensor([1, 1, -1]))
        tensor([2, 5, 2])
    """

    def __init__(self, labels: ClassLabels) -> None:
        self.labels = labels

    def toward(self, direction: Tensor, beyond: float = 0.0) -> Tensor:
        """Return the next class for each label, or the one before it; see `Reach`."""
        index, targets = self.labels.index, self.labels.targets
        classes = index.unique() if targets is None else index.new_tensor(sorted(targets))
        step = torch.where(direction < 0, -1, 1)
        orders = (values.to(torch.uint8) if values.dtype == torch.bool else values for values in (classes, index))
        flipped = classes[(torch.searchsorted(*orders) + step) % len(classes)]
        if self.labels.sources is None:
            return flipped
        return torch.where(torch.isin(index, index.new_tensor(self.labels.sources)), flipped, index)
