"""The bounded adversary ⟨n, ε, p, ν, q⟩ of section 2."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.adversaries.base import check_count, check_order, check_size
from agt_lightning.capture.objective import LabelKind
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.rules.base import Value, interval

_INFINITY = math.inf


@dataclass(frozen=True)
class BoundedAdversary:
    """Up to ``n`` samples of **each batch** have features moved by at most ε in ℓp and labels by at most ν in ℓq.

    Features and label of the same n samples are changed, and which samples those are may differ from batch to batch.
    ``n`` larger than the batch means the whole batch.

    Args:
        n: number of poisoned samples per batch (per optimizer step, if gradients accumulate).
        epsilon: radius ε of the feature ball, in units of the features that enter `training_step`.
        p: norm of the feature ball, 1, 2 or infinity. The enclosing box is propagated, so smaller p is sound and as
            wide as infinity.
        nu: radius ν of the label ball; for class labels, whether they can be flipped (1) or not (0).
        q: norm of the label ball: 0 flips class or binary labels; 1, 2 and infinity move real-valued labels.
        target_classes: for flips, the classes that can be written; None means all.
        source_classes: for flips, the classes whose samples can be relabeled; None means all.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is negative, not finite, or not one of the allowed norms or classes.

    Reference:
        Paper, section 2, "Bounded Poisoning Attacks".

    Example:
        >>> BoundedAdversary(n=10, epsilon=0.01)                # features
        BoundedAdversary(n=10, epsilon=0.01, p=inf, nu=0.0, q=inf, target_classes=None, source_classes=None)
        >>> flips = BoundedAdversary(n=5, nu=1, q=0)            # label flips
        >>> BoundedAdversary(n=-1)
        Traceback (most recent call last):
        ...
        ValueError: Expected `n` to be at least 0, but got -1.
    """

    n: int
    epsilon: float = 0.0
    p: float = _INFINITY
    nu: float = 0.0
    q: float = _INFINITY
    target_classes: Sequence[int] | None = None
    source_classes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Validate, so that every adversary that exists has a meaning."""
        check_count("n", self.n)
        check_size("epsilon", self.epsilon)
        check_order("p", self.p, {1, 2, _INFINITY})
        check_size("nu", self.nu)
        check_order("q", self.q, {0, 1, 2, _INFINITY})
        for name in ("target_classes", "source_classes"):
            self._check_classes(name)
        if self.q == 0 and self.nu not in (0, 1):
            raise ValueError(
                f"Expected `nu` to be 0 or 1 with `q=0`, the number of labels changed per sample, but got {self.nu}."
            )

    def _check_classes(self, name: str) -> None:
        classes = getattr(self, name)
        if classes is None:
            return
        if isinstance(classes, str) or not isinstance(classes, Sequence):
            raise TypeError(f"Expected `{name}` to be a sequence of class indices or None, but got {classes!r}.")
        for index in classes:
            check_count(name, index)
        if self.q != 0:
            raise ValueError(
                f"Expected `{name}` only with label flips (`nu=1, q=0`), but got it with `q={self.q}`. Set `q=0` or "
                f"leave `{name}` out."
            )
        object.__setattr__(self, name, tuple(classes))

    @property
    def perturbs_features(self) -> bool:
        """Whether ε > 0."""
        return self.epsilon > 0

    @property
    def perturbs_labels(self) -> bool:
        """Whether ν > 0."""
        return self.nu > 0

    def problems(self, label_kind: LabelKind, labels: int, features: int) -> list[str]:
        """Combinations of adversary and objective that make no sense."""
        problems: list[str] = []
        if self.n == 0:
            return problems
        if self.perturbs_features and features == 0:
            problems.append("`epsilon` is positive, but no floating point batch entry meets the parameters.")
        if not self.perturbs_labels:
            return problems
        if labels != 1:
            problems.append(
                f"`nu` is positive, but {labels} batch entries meet the predictions like labels. Set `nu=0`, or mix in "
                "`CertifiedModule` and write `certified_objective(batch)` with one label."
            )
        flips = self.q == 0
        if label_kind is LabelKind.CLASS and not flips:
            problems.append(f"Class labels cannot move by `nu={self.nu}` in norm `q={self.q}`. Use `nu=1, q=0`.")
        if label_kind is LabelKind.NUMBER and flips:
            problems.append(
                "`q=0` flips class labels, but the loss reads real-valued labels, which `q=0` would leave unbounded. "
                "Use `q=inf` with a radius `nu`."
            )
        restricted = self.target_classes is not None or self.source_classes is not None
        if restricted and label_kind is LabelKind.BINARY:
            problems.append(
                "`target_classes` and `source_classes` need class labels, but the loss reads zeros and ones."
            )
        return problems

    def poisoned_features(self, features: Value) -> Value:
        """``[x - ε, x + ε]``, which contains the ℓp ball for every p; discrete features cannot move."""
        if not isinstance(features, Interval):
            return features
        return Interval.trusted(features.lower - self.epsilon, features.upper + self.epsilon)

    def poisoned_labels(self, labels: Tensor, label_kind: LabelKind) -> Value:
        """``[y - ν, y + ν]``, or everything a flip can reach."""
        if label_kind is LabelKind.CLASS:
            sources, targets = self.source_classes, self.target_classes
            return ClassLabels(
                labels,
                flippable=True,
                sources=None if sources is None else tuple(sources),
                targets=None if targets is None else tuple(targets),
            )
        point = interval(labels).lower
        if self.q == 0:
            if not bool(((point >= 0) & (point <= 1)).all()):
                raise ValueError(
                    "Expected labels in [0, 1] for flips of binary labels, but got values in "
                    f"[{float(point.min())}, {float(point.max())}]. Transform them in the data set."
                )
            return Interval.trusted(torch.zeros_like(point), torch.ones_like(point), nonnegative=True)
        return Interval.trusted(point - self.nu, point + self.nu)
