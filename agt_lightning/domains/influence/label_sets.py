"""The labels an adversary can write in place of each sample's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from agt_lightning.adversaries import BoundedAdversary
from agt_lightning.adversaries.base import check_order, check_size
from agt_lightning.arithmetic import dual_norm
from agt_lightning.domains.influence.target_encoding import TargetEncoding
from agt_lightning.errors import UncertifiableError


class LabelRange(NamedTuple):
    """The largest changes of ``w·y`` that each sample's label allows.

    Args:
        fall: largest decrease, >= 0, (N,).
        rise: largest increase, >= 0, (N,).
    """

    fall: Tensor
    rise: Tensor

    def loss(self, coefficients: Tensor, samples: Tensor) -> Tensor:
        """Return the largest decrease of ``w·f`` by the label of each position, (q, m).

        It is ``max(a fall, -a rise)``, for a of shape (q, m) and the sample of each position, (m,).
        """
        return torch.maximum(coefficients * self.fall[samples], -coefficients * self.rise[samples])

    def reversed(self) -> LabelRange:
        """Return the same for ``-w·y``."""
        return LabelRange(self.rise, self.fall)


class LabelSet(Protocol):
    """A set of labels for each sample, which contains its own."""

    @property
    def largest(self) -> float:
        """Largest magnitude of a label, own or other."""
        ...

    def range(self, direction: Tensor) -> LabelRange:
        """Return the largest changes of ``w·y`` for a direction w (K,); they are attained, for every w."""
        ...


@dataclass(frozen=True, eq=False)
class LabelFlips:
    """A set in which each label can become the codeword of another class.

    Args:
        encoding: codewords of the classes.
        classes: class of each sample, int64 (N,).
        allowed: which class (row) can become which (column), boolean (C, C); the diagonal is true.

    Example:
        >>> flips = LabelFlips.of_targets(torch.eye(3), target_classes=(0,))
        >>> flips.range(torch.tensor([1.0, -1.0, 0.0]))      # f_0 - f_1: writing class 0 can only raise it
        LabelRange(fall=tensor([0., 0., 0.], dtype=torch.float64), rise=tensor([0., 2., 1.], dtype=torch.float64))
    """

    encoding: TargetEncoding
    classes: Tensor
    allowed: Tensor

    @classmethod
    def of_targets(
        cls,
        targets: Tensor,
        encoding: TargetEncoding | None = None,
        *,
        source_classes: Sequence[int] | None = None,
        target_classes: Sequence[int] | None = None,
    ) -> LabelFlips:
        """Return the flips of targets (N, K).

        Args:
            targets: codewords of the samples' classes.
            encoding: codewords of all classes; None to infer them from the targets.
            source_classes: classes whose samples can be relabeled; None for all.
            target_classes: classes that can be written; None for all.

        Raises:
            ValueError: if a target is not a codeword, or a class does not exist.
        """
        encoding = (TargetEncoding.of_targets(targets) if encoding is None else encoding).to(targets.device)
        count = len(encoding.codewords)
        sources, destinations = (_members(classes, count) for classes in (source_classes, target_classes))
        allowed = (sources[:, None] & destinations[None, :]) | torch.eye(count, dtype=torch.bool)
        return cls(encoding, encoding.classes_of(targets), allowed.to(targets.device))

    @property
    def largest(self) -> float:
        """Largest magnitude in a codeword."""
        return self.encoding.largest

    def range(self, direction: Tensor) -> LabelRange:
        """Return the largest fall and rise of ``w·y`` over the classes that each sample's label can become."""
        codewords = self.encoding.codewords
        scores = (codewords @ direction.to(codewords)).expand(len(codewords), -1)
        own = scores.diagonal()
        fall = own - torch.where(self.allowed, scores, torch.inf).amin(dim=1)
        rise = torch.where(self.allowed, scores, -torch.inf).amax(dim=1) - own
        return LabelRange(fall[self.classes], rise[self.classes])


@dataclass(frozen=True, eq=False)
class LabelBall:
    """A set in which each label can move by at most ``nu`` in ℓq over the outputs.

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
        """Check radius and norm."""
        check_size("nu", self.nu)
        check_order("q", self.q, {1, 2, math.inf})

    @property
    def largest(self) -> float:
        """Largest magnitude of a moved label."""
        return float(self.targets.abs().max()) + self.nu

    def range(self, direction: Tensor) -> LabelRange:
        """Return ``ν ‖w‖_{q*}`` for every sample, with the dual norm."""
        change = self.nu * dual_norm(direction.double()[None], self.q)[0]
        changes = change.to(self.targets.device).expand(len(self.targets))
        return LabelRange(changes, changes)


def allowed_labels(adversary: BoundedAdversary, targets: Tensor, codewords: Tensor | None) -> LabelSet:
    """Return the labels that an adversary can write, sample by sample.

    Args:
        adversary: moves labels by ``nu``, or flips them with ``q=0``.
        targets: y, (N, K).
        codewords: y of each class, (C, K); None if labels are numbers.

    Raises:
        ValueError: if labels are to be flipped and a target is not a codeword, or a class does not exist.

    Example:
        >>> import torch
        >>> flips = BoundedAdversary(n=1, nu=1, q=0, target_classes=(0,))
        >>> allowed_labels(flips, torch.eye(2), torch.eye(2)).allowed
        tensor([[ True, False],
                [ True,  True]])
    """
    if not adversary.perturbs_labels:
        return LabelBall(targets, nu=0.0)
    if adversary.q == 0:
        return _allowed_flips(adversary, targets, None if codewords is None else TargetEncoding(codewords))
    return LabelBall(targets, adversary.nu, adversary.q)


def class_flips(adversary: BoundedAdversary, targets: Tensor, codewords: Tensor | None) -> LabelFlips:
    """Return flips of class labels, even if the adversary moves labels as numbers or not at all.

    Only an adversary that flips restricts them, by its ``source_classes`` and ``target_classes``.

    Args:
        adversary: the threat model of the training.
        targets: y, (N, K).
        codewords: y of each class, (C, K); None to infer them from targets that hold two values.

    Raises:
        UncertifiableError: if the targets are no codewords, or the prediction rule that they imply is neither the
            largest output nor the sign of a single one.
    """
    try:
        encoding = TargetEncoding.of_targets(targets) if codewords is None else TargetEncoding(codewords)
        flips = _allowed_flips(adversary, targets, encoding)
    except ValueError as error:
        raise UncertifiableError([f"Label flips have no meaning for these targets. {error}"]) from error
    encoding.require_argmax()
    return flips


def _allowed_flips(adversary: BoundedAdversary, targets: Tensor, encoding: TargetEncoding | None) -> LabelFlips:
    if adversary.q != 0:
        return LabelFlips.of_targets(targets, encoding)
    return LabelFlips.of_targets(
        targets, encoding, source_classes=adversary.source_classes, target_classes=adversary.target_classes
    )


def _members(classes: Sequence[int] | None, count: int) -> Tensor:
    """Return which of ``count`` classes are given, boolean (count,); None for all."""
    if classes is None:
        return torch.ones(count, dtype=torch.bool)
    if any(not 0 <= index < count for index in classes):
        raise ValueError(f"Expected classes in 0..{count - 1}, but got {tuple(classes)}.")
    return torch.isin(torch.arange(count), torch.tensor(tuple(classes), dtype=torch.int64))
