"""The bounded adversary ⟨n, ε, p, ν, q⟩ of section 2."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agt_lightning.adversaries.base import check_count, check_order, check_radius, check_size, check_unit
from agt_lightning.adversaries.features import moved_down, moved_up, perturbed, radius_of_sample
from agt_lightning.capture.roles import LabelKind
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.rounding import round_up
from agt_lightning.rules.values import Value, as_interval

_INFINITY = math.inf


@dataclass(frozen=True)
class BoundedAdversary:
    """An adversary that moves features by up to ε (ℓp) and labels by up to ν (ℓq), in ``n`` samples of **each batch**.

    Features and label of a sample are changed together, in up to n samples of **each batch**; these may differ from
    batch to batch. If ``n`` exceeds the size of a batch, all its samples can be changed. If several batch entries are
    features, each of them has a ball of its own; so have several labels that a user names.

    Args:
        n: number of poisoned samples per batch (per optimizer step, if gradients accumulate); of sources, if it counts
            these.
        epsilon: radius ε of the feature ball, in units of the features that enter `training_step`. A tensor gives each
            feature its own radius: it is broadcast to the shape of one sample, and the ball is
            ``{x + ε ∘ u : ‖u‖_p <= 1}``.
        p: norm of the feature ball, 1, 2 or infinity. The first linear or convolution layer uses the dual norm, later
            operations the enclosing box.
        nu: radius ν of the label ball; for class labels, 1 if they can be flipped, else 0.
        q: norm of the label ball: 0 flips class or binary labels; 1, 2 and infinity move real-valued labels, of one or
            several outputs (the enclosing box is propagated, which is exact for each output alone).
        target_classes: for flips, the classes that labels can become; None if all. Labels that the loss reads as
            numbers, such as ``y.float()`` in a squared error, become one of these numbers, which must be given.
        source_classes: for flips, the classes whose samples can be relabeled; None if all.
        bounds: smallest and largest value of a feature, such as (0, 1) for pixels; the ball is cut to this range. None
            if there is no range.
        at: path of a frozen submodule, such as ``"backbone"``, whose outputs ε moves in place of the features that
            enter `training_step`; ``epsilon`` and ``bounds`` are then in their units. The only ball that there is for
            text. None if the features of the batch are moved.
        counts: what n counts: ``"samples"``, or ``"sources"``, such as suppliers or hospitals, each of which can change
            all samples that come from it. Training is then told whose a sample is, by
            ``CertifiedTraining(..., sources="hospital")``.
        per: where n counts: ``"batch"``, others in every step if the adversary likes, or ``"dataset"``, the same ones
            in all epochs, whose labels are written once. An adversary of the data set can do less, and its bounds are
            never wider (docs/theory.md, section 17.3); most domains bound it by n of each batch.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is negative, not finite, or not one of the allowed norms or classes.

    Reference:
        Paper, section 2, "Bounded Poisoning Attacks".

    Example:
        >>> BoundedAdversary(n=10, epsilon=0.01)                # features
        BoundedAdversary(n=10, epsilon=0.01, p=inf, nu=0.0, q=inf, target_classes=None, source_classes=None,
        bounds=None, at=None, counts='samples', per='batch')
        >>> flips = BoundedAdversary(n=5, nu=1, q=0)            # label flips
        >>> BoundedAdversary(n=-1)
        Traceback (most recent call last):
        ...
        ValueError: Expected `n` to be at least 0, but got -1.
    """

    n: int
    epsilon: float | Tensor = 0.0
    p: float = _INFINITY
    nu: float = 0.0
    q: float = _INFINITY
    target_classes: Sequence[int] | None = None
    source_classes: Sequence[int] | None = None
    bounds: tuple[float, float] | None = None
    at: str | None = None
    counts: Literal["samples", "sources"] = "samples"
    per: Literal["batch", "dataset"] = "batch"

    def __post_init__(self) -> None:
        """Validate the fields, so that each instance is a meaningful threat model."""
        check_count("n", self.n)
        check_radius("epsilon", self.epsilon)
        check_order("p", self.p, {1, 2, _INFINITY})
        check_size("nu", self.nu)
        check_order("q", self.q, {0, 1, 2, _INFINITY})
        check_unit(self.counts, self.per)
        for name in ("target_classes", "source_classes"):
            self._check_classes(name)
        if self.q == 0 and self.nu not in (0, 1):
            raise ValueError(
                f"Expected `nu` to be 0 or 1 with `q=0`, the number of labels changed per sample, but got {self.nu}."
            )

        self._check_bounds()
        self._check_place()

    def _check_place(self) -> None:
        if self.at is None:
            return
        if not isinstance(self.at, str) or not self.at:
            raise TypeError(f"Expected `at` to be the path of a submodule or None, but got {self.at!r}.")
        if not self.perturbs_features:
            raise ValueError("Expected `at` only with `epsilon > 0`, whose ball it places, but `epsilon` is 0.")

    def _check_bounds(self) -> None:
        if self.bounds is None:
            return
        if not isinstance(self.bounds, Sequence) or len(self.bounds) != 2:
            raise TypeError(f"Expected `bounds` to be a pair (smallest, largest) or None, but got {self.bounds!r}.")
        low, high = (float(bound) for bound in self.bounds)
        if not low < high:
            raise ValueError(f"Expected `bounds` with smallest < largest, but got {self.bounds}.")
        if not self.perturbs_features:
            raise ValueError("Expected `bounds` only with `epsilon > 0`, whose ball it cuts, but `epsilon` is 0.")
        object.__setattr__(self, "bounds", (low, high))

    def _check_classes(self, name: str) -> None:
        classes = getattr(self, name)
        if classes is None:
            return
        if isinstance(classes, str) or not isinstance(classes, Sequence):
            raise TypeError(f"Expected `{name}` to be a sequence of class indices or None, but got {classes!r}.")
        for index in classes:
            check_count(name, index)
        if self.q != 0 or not self.nu:
            raise ValueError(
                f"Expected `{name}` only with label flips (`nu=1, q=0`), but got it with `nu={self.nu}, q={self.q}`. "
                f"Set both, or leave `{name}` out."
            )
        object.__setattr__(self, name, tuple(classes))

    @property
    def perturbs_features(self) -> bool:
        """Whether ε > 0."""
        return bool((torch.as_tensor(self.epsilon) > 0).any())

    @property
    def perturbs_labels(self) -> bool:
        """Whether ν > 0."""
        return self.nu > 0

    @property
    def sample_clipping(self) -> None:
        """None, since gradients are bounded by features and labels, without clipping."""
        return None

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What `at` leaves clean; otherwise empty, since only the usual assumptions apply."""
        if self.at is None:
            return ()
        return (
            f"Features are poisoned at the outputs of `{self.at}`. What comes before these outputs is the same in "
            "every run, and so are features that reach the loss around them.",
        )

    def problems(self, label_kind: LabelKind, labels: int, features: int) -> list[str]:
        """List the reasons why this adversary makes no sense for an objective."""
        problems: list[str] = []
        if self.n == 0:
            return problems
        if self.perturbs_features and features == 0:
            problems.append(
                "`epsilon` is positive, but the loss reads no feature that it can move: no batch entry of floating "
                "point meets the parameters. Words and categories have no distance: poison labels instead, by `nu`, "
                "and set `epsilon=0`. Numbers that are stored as integers are moved if the data set converts them."
            )
        if not self.perturbs_labels:
            return problems
        if labels != 1:
            problems.append(
                f"`nu` is positive, but {labels} batch entries meet the predictions like labels. Name the label by "
                "`labels=`, or set `nu=0`."
            )
        flips = self.q == 0
        if label_kind is LabelKind.CLASS and not flips:
            problems.append(f"Class labels cannot move by `nu={self.nu}` in norm `q={self.q}`. Use `nu=1, q=0`.")
        if label_kind is LabelKind.NUMBER and flips and self.target_classes is None:
            problems.append(
                "`q=0` flips class labels, but the loss reads real-valued labels, which `q=0` would leave unbounded. "
                "Use `q=inf` with a radius `nu`, or name the numbers that a flip can write, as by "
                "`target_classes=(0, 1)`."
            )
        if label_kind is LabelKind.BINARY and self.source_classes is not None and self.target_classes is None:
            problems.append(
                "`source_classes` needs class labels, but the loss reads zeros and ones. Name what a flip can write, "
                "as by `target_classes=(0, 1)`, or leave `source_classes` out."
            )
        return problems

    def poisoned_features(self, features: Value) -> Value:
        """Return ``[x - ε, x + ε]`` cut to ``bounds``, with the ball for p below infinity; discrete features stay.

        Raises:
            ValueError: if ``epsilon`` does not fit the features, or the features lie outside ``bounds``.
        """
        if not isinstance(features, Interval):
            return features
        moved = perturbed(features.lower, self.epsilon, self.p, self.bounds)
        if features.is_point:
            return moved
        # Data of a finer type than that of the bounds: the ball has no point in the middle.
        return moved.hull(perturbed(features.upper, self.epsilon, self.p, self.bounds))

    def feature_radius(self, features: Tensor) -> Tensor:
        """Return ε of each feature, of the shape of one sample.

        Raises:
            ValueError: if ``epsilon`` does not fit the features.
        """
        return radius_of_sample(features, self.epsilon)

    def poisoned_labels(self, labels: Tensor, label_kind: LabelKind) -> Value:
        """Return ``[y - ν, y + ν]``, or all labels that a flip can produce, as numbers their hull.

        Raises:
            ValueError: if binary labels are flipped that are not in [0, 1].
        """
        if label_kind is LabelKind.CLASS:
            return self._flipped(labels)
        if self.q == 0 and self.target_classes is not None:
            return as_interval(self._flipped(labels))
        point = as_interval(labels).lower
        if self.q == 0:
            if not bool(((point >= 0) & (point <= 1)).all()):
                raise ValueError(
                    "Expected labels in [0, 1] for flips of binary labels, but got values in "
                    f"[{float(point.min())}, {float(point.max())}]. Transform them in the data set."
                )
            return Interval.trusted(torch.zeros_like(point), torch.ones_like(point), nonnegative=True)
        radius = round_up(torch.full_like(point, self.nu, dtype=torch.float64), point.dtype)
        return Interval.trusted(moved_down(point, radius), moved_up(point, radius))

    def _flipped(self, labels: Tensor) -> ClassLabels:
        sources, targets = self.source_classes, self.target_classes
        return ClassLabels(
            labels,
            flippable=True,
            sources=None if sources is None else tuple(sources),
            targets=None if targets is None else tuple(targets),
        )
