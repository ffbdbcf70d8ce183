"""The labels an adversary can write in place of each sample's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from agt_lightning.adversaries.base import check_order, check_size
from agt_lightning.domains.influence.codes import ClassCodes


class LabelRange(NamedTuple):
    """How far ``w·y`` can be moved for each sample by changing its label.

    Args:
        fall: largest decrease, >= 0, (N,).
        rise: largest increase, >= 0, (N,).
    """

    fall: Tensor
    rise: Tensor

    def loss(self, coefficients: Tensor, samples: Tensor) -> Tensor:
        """Largest decrease of ``w·f`` by one position's label, ``max(a fall, -a rise)``, for a of shape (q, m)."""
        return torch.maximum(coefficients * self.fall[samples], -coefficients * self.rise[samples])

    def reversed(self) -> LabelRange:
        """The same for ``-w·y``."""
        return LabelRange(self.rise, self.fall)


class LabelSet(Protocol):
    """A set of labels for each sample, which contains its own."""

    @property
    def largest(self) -> float:
        """Largest magnitude of a label, own or other."""
        ...

    def range(self, direction: Tensor) -> LabelRange:
        """How far ``w·y`` can move for a direction w (K,); attained, for every w."""
        ...


@dataclass(frozen=True, eq=False)
class LabelFlips:
    """Each label can become the code of another class.

    Args:
        codes: codes of the classes.
        classes: class of each sample, int64 (N,).
        allowed: boolean (C, C), which class (row) can become which (column); the diagonal is true.

    Example:
        >>> flips = LabelFlips.of_targets(torch.eye(3), target_classes=(0,))
        >>> flips.range(torch.tensor([1.0, -1.0, 0.0]))      # f_0 - f_1: writing class 0 can only raise it
        LabelRange(fall=tensor([0., 0., 0.], dtype=torch.float64), rise=tensor([0., 2., 1.], dtype=torch.float64))
    """

    codes: ClassCodes
    classes: Tensor
    allowed: Tensor

    @classmethod
    def of_targets(
        cls,
        targets: Tensor,
        codes: ClassCodes | None = None,
        *,
        source_classes: Sequence[int] | None = None,
        target_classes: Sequence[int] | None = None,
    ) -> LabelFlips:
        """Flips of targets (N, K).

        Args:
            targets: codes of the samples' classes.
            codes: codes of all classes; None reads them off the targets.
            source_classes: classes whose samples can be relabeled; None means all.
            target_classes: classes that can be written; None means all.

        Raises:
            ValueError: if a target is not a code, or a class does not exist.
        """
        codes = (ClassCodes.of_targets(targets) if codes is None else codes).to(targets.device)
        count = len(codes.codes)
        sources, destinations = (_members(chosen, count) for chosen in (source_classes, target_classes))
        allowed = (sources[:, None] & destinations[None, :]) | torch.eye(count, dtype=torch.bool)
        return cls(codes, codes.classes_of(targets), allowed.to(targets.device))

    @property
    def largest(self) -> float:
        """Largest magnitude in a code."""
        return float(self.codes.codes.abs().max())

    def range(self, direction: Tensor) -> LabelRange:
        """Largest fall and rise of ``w·y`` over the classes that each sample's label can become."""
        scores = self._scores(direction)
        own = scores.diagonal()
        fall = own - torch.where(self.allowed, scores, torch.inf).amin(dim=1)
        rise = torch.where(self.allowed, scores, -torch.inf).amax(dim=1) - own
        return LabelRange(fall[self.classes], rise[self.classes])

    def worst(self, direction: Tensor, coefficients: Tensor, samples: Tensor) -> Tensor:
        """The classes that lower ``w·f`` most, for one coefficient (m,) per sample (m,); int64 (m,)."""
        scores = self._scores(direction)
        lowest = torch.where(self.allowed, scores, torch.inf).argmin(dim=1)
        highest = torch.where(self.allowed, scores, -torch.inf).argmax(dim=1)
        own = self.classes[samples]
        return torch.where(coefficients > 0, lowest[own], highest[own])

    def _scores(self, direction: Tensor) -> Tensor:
        """``w·E_c`` in every row, (C, C)."""
        codes = self.codes.codes
        return (codes @ direction.to(codes)).expand(len(codes), -1)


@dataclass(frozen=True, eq=False)
class LabelBall:
    """Each label can move by at most ``nu`` in ℓq over the outputs.

    Args:
        targets: the labels, (N, K).
        nu: radius ν, in units of the targets.
        q: norm, 1, 2 or infinity.

    Raises:
        ValueError: if ``nu`` is negative or not finite, or ``q`` is another norm.

    Example:
        >>> LabelBall(torch.zeros(2, 2), nu=0.5).range(torch.tensor([1.0, -1.0])).fall
        tensor([1., 1.], dtype=torch.float64)
    """

    targets: Tensor
    nu: float
    q: float = math.inf

    def __post_init__(self) -> None:
        """Check that radius and norm have a meaning."""
        check_size("nu", self.nu)
        check_order("q", self.q, {1, 2, math.inf})

    @property
    def largest(self) -> float:
        """Largest magnitude of a moved label."""
        return float(self.targets.abs().max()) + self.nu

    def range(self, direction: Tensor) -> LabelRange:
        """``ν ‖w‖_{q*}`` for every sample, with the dual norm."""
        dual = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[float(self.q)]
        size = self.nu * torch.linalg.vector_norm(direction.double(), ord=dual)
        reach = size.to(self.targets.device).expand(len(self.targets))
        return LabelRange(reach, reach)


def _members(chosen: Sequence[int] | None, count: int) -> Tensor:
    if chosen is None:
        return torch.ones(count, dtype=torch.bool)
    if any(not 0 <= index < count for index in chosen):
        raise ValueError(f"Expected classes in 0..{count - 1}, but got {tuple(chosen)}.")
    return torch.isin(torch.arange(count), torch.tensor(tuple(chosen), dtype=torch.int64))
