"""Class labels that an adversary can change: for each sample, a set of reachable classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval


@dataclass(frozen=True)
class ClassLabels:
    """A batch of integer labels and, for each, the classes by which an adversary could replace it.

    Args:
        index: the labels in the data, integers of shape (batch, ...).
        flippable: whether the adversary can change these labels at all.
        sources: classes whose samples can be relabeled; None if all.
        targets: classes that labels can become; None if all. The label in the data is always reachable.

    Example:
        >>> ClassLabels(torch.tensor([0, 2]), flippable=True, targets=(1,)).reachable(3)
        tensor([[ True,  True, False],
                [False,  True,  True]])
    """

    index: Tensor
    flippable: bool = False
    sources: tuple[int, ...] | None = None
    targets: tuple[int, ...] | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> ClassLabels:
        """Return the same labels after a change of shape or choice of samples."""
        return ClassLabels(function(self.index), self.flippable, self.sources, self.targets)

    def to(self, dtype: torch.dtype) -> ClassLabels:
        """Return the labels in another discrete type, which can merge classes, as ``bool`` does.

        Example:
            >>> labels = ClassLabels(torch.tensor([0, 1]), flippable=True, sources=(0,), targets=(2,))
            >>> labels.to(torch.bool).reachable(2)
            tensor([[ True,  True],
                    [False,  True]])
        """
        sources, targets = self._converted(self.sources, dtype), self._converted(self.targets, dtype)
        return ClassLabels(self.index.to(dtype), self.flippable, sources, targets)

    def _converted(self, classes: tuple[int, ...] | None, dtype: torch.dtype) -> tuple[int, ...] | None:
        if classes is None:
            return None
        return tuple(int(index) for index in torch.tensor(classes, dtype=self.index.dtype).to(dtype).tolist())

    def reachable(self, classes: int) -> Tensor:
        """Return the classes that each label can become, as booleans of shape (batch, ..., classes).

        Raises:
            UncertifiableError: if a label is not in ``0 .. classes - 1``.
        """
        if self.index.numel() and not bool(((self.index >= 0) & (self.index < classes)).all()):
            wrong = self.index[(self.index < 0) | (self.index >= classes)][0].item()
            raise UncertifiableError(
                [
                    f"Expected class labels in 0..{classes - 1}, but got {wrong}. If it is left out of the loss "
                    "(`ignore_index`), a changed label would change the weight of all others: with fixed labels "
                    "(`nu=0`) give the loss the batch entry itself, without smoothing; otherwise remove those samples."
                ]
            )
        clean = torch.nn.functional.one_hot(self.index.long(), classes).bool()
        if not self.flippable:
            return clean
        return clean | (self._is_source()[..., None] & self._targets(classes))

    def one_hot(self, classes: int, dtype: torch.dtype) -> Interval:
        """Bound the one-hot vectors of all reachable labels, of shape (batch, ..., classes)."""
        reachable = self.reachable(classes)
        upper = reachable.to(dtype)
        if not self.flippable:
            return Interval.point(upper, nonnegative=True)
        lower = (reachable & (reachable.sum(dim=-1, keepdim=True) == 1)).to(dtype)
        return Interval.trusted(lower, upper, nonnegative=True)

    @property
    def numbers(self) -> Interval | None:
        """The hull of all numbers that each label can be, of its shape; None if unbounded.

        Integers become numbers in double precision.

        Example:
            >>> labels = ClassLabels(torch.tensor([0, 2]), flippable=True, sources=(2,), targets=(1, 3))
            >>> hull = labels.numbers
            >>> hull.lower.tolist(), hull.upper.tolist()
            ([0.0, 1.0], [0.0, 3.0])
        """
        point = self.index if self.index.is_floating_point() else self.index.double()
        if not self.flippable or self.targets == ():
            return Interval.point(point)
        targets = (0, 1) if self.targets is None and self.index.dtype == torch.bool else self.targets
        if targets is None:
            return None
        source = self._is_source()
        lower = torch.where(source, point.clamp(max=min(targets)), point)
        return Interval.trusted(lower, torch.where(source, point.clamp(min=max(targets)), point))

    def _is_source(self) -> Tensor:
        if self.sources is None:
            return torch.ones_like(self.index, dtype=torch.bool)
        index = self.index if self.index.is_floating_point() else self.index.long()
        return torch.isin(index, torch.tensor(self.sources, device=index.device).to(index.dtype))

    def _targets(self, classes: int) -> Tensor:
        if self.targets is None:
            return torch.ones(classes, dtype=torch.bool, device=self.index.device)
        device = self.index.device
        return torch.isin(torch.arange(classes, device=device), torch.tensor(self.targets, device=device))
