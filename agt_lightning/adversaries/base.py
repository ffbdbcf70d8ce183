"""The protocol of an adversary, and validation for all adversaries."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from numbers import Integral
from typing import Protocol

import torch
from torch import Tensor

from agt_lightning.aggregation import SampleClipping
from agt_lightning.capture.roles import LabelKind
from agt_lightning.rules.values import Value


class Adversary(Protocol):
    """A threat model: up to ``n`` samples of each batch are changed, within limits that the adversary defines.

    A custom threat model is a frozen dataclass with these properties and methods; certificates state its fields. The
    box certifies any of them; the `problems` of other domains state which adversaries they cover.

    Example:
        >>> from agt_lightning import CertifiedTraining, Interval
        >>> @dataclasses.dataclass(frozen=True)
        ... class Brightened:                              # up to n samples get brighter, by 0.1 at most
        ...     n: int
        ...     perturbs_features, perturbs_labels, sample_clipping = True, False, None
        ...     assumptions = ("Images are not darkened.",)
        ...     def problems(self, label_kind, labels, features):
        ...         return [] if features else ["There are no features to brighten. Use another adversary."]
        ...     def poisoned_features(self, features):
        ...         clean = features if isinstance(features, Interval) else Interval.point(features)
        ...         return Interval(clean.lower, clean.upper + 0.1)
        ...     def poisoned_labels(self, labels, label_kind):
        ...         return labels
        >>> certified = CertifiedTraining(Brightened(n=5))
    """

    @property
    def n(self) -> int:
        """The largest number of poisoned samples per optimizer step."""

    @property
    def sample_clipping(self) -> SampleClipping | None:
        """The clipping that training must apply to each sample's gradient (Theorem D.1).

        None if training does not clip: then poisoned samples are bounded by `poisoned_features` and `poisoned_labels`
        (Theorem 3.4).
        """

    @property
    def assumptions(self) -> Sequence[str]:
        """Sentences that certificates for this adversary add to the usual assumptions."""

    def problems(self, label_kind: LabelKind, labels: int, features: int) -> list[str]:
        """List the reasons why this adversary does not fit a training objective, each with a remedy.

        Args:
            label_kind: kind of the labels.
            labels: number of batch entries used as labels.
            features: number of floating point batch entries used as features.
        """

    @property
    def perturbs_features(self) -> bool:
        """Whether a poisoned sample's features are bounded and can differ."""

    @property
    def perturbs_labels(self) -> bool:
        """Whether a poisoned sample's label is bounded and can differ."""

    def poisoned_features(self, features: Value) -> Value:
        """Bound the features of poisoned samples."""

    def poisoned_labels(self, labels: Tensor, label_kind: LabelKind) -> Value:
        """Bound the labels of poisoned samples."""


def require_adversary(adversary: object) -> None:
    """Require the attributes of an adversary.

    Raises:
        TypeError: if attributes are missing, which the message names, or it is not an instance of a dataclass.
        ValueError: if it has `counts` or `per`, as what n counts, and where, and they are no known names.
    """
    needed = ("n", "perturbs_features", "perturbs_labels", "sample_clipping", "assumptions", "problems")
    missing = [name for name in (*needed, "poisoned_features", "poisoned_labels") if not hasattr(adversary, name)]
    if missing or not dataclasses.is_dataclass(adversary) or isinstance(adversary, type):
        lacks = f" It lacks {', '.join(f'`{name}`' for name in missing)}." if missing else ""
        raise TypeError(
            "Expected `adversary` to be a `BoundedAdversary`, an `UnboundedAdversary` or a frozen dataclass with the "
            f"attributes of `agt_lightning.adversaries.Adversary`, but got {type(adversary).__name__}.{lacks}"
        )
    check_unit(getattr(adversary, "counts", "samples"), getattr(adversary, "per", "batch"))


def inserts_and_deletes(adversary: Adversary) -> bool:
    """Return whether an adversary inserts and deletes samples, so that the size of a batch is not the same in all runs.

    Example:
        >>> from agt_lightning import UnboundedAdversary
        >>> inserts_and_deletes(UnboundedAdversary(n=1, kappa=1.0, edits="insert-delete"))
        True
    """
    return getattr(adversary, "edits", "replace") == "insert-delete"


def counted(adversary: Adversary) -> str:
    """Return what n counts, ``"samples"`` or ``"sources"``; adversaries of one's own count samples by default."""
    return getattr(adversary, "counts", "samples")


def counted_in(adversary: Adversary) -> str:
    """Return where n counts, ``"batch"`` or ``"dataset"``; adversaries of one's own count in each batch by default."""
    return getattr(adversary, "per", "batch")


def counts_sources(adversary: Adversary) -> bool:
    """Return whether n counts sources, each of which can change all of its samples, in place of samples.

    Example:
        >>> from agt_lightning import BoundedAdversary
        >>> counts_sources(BoundedAdversary(n=1, epsilon=0.1, counts="sources"))
        True
    """
    return counted(adversary) == "sources"


def counts_dataset(adversary: Adversary) -> bool:
    """Return whether n counts in the whole data set, over all steps together, in place of the batch of each step.

    Example:
        >>> from agt_lightning import BoundedAdversary
        >>> counts_dataset(BoundedAdversary(n=1, epsilon=0.1, per="dataset"))
        True
    """
    return counted_in(adversary) == "dataset"


def check_count(name: str, value: object) -> None:
    """Require a nonnegative integer.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is negative.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"Expected `{name}` to be an integer, but got {value!r} ({type(value).__name__}).")
    if int(value) < 0:
        raise ValueError(f"Expected `{name}` to be at least 0, but got {value}.")


def check_unit(counts: object, per: object) -> None:
    """Require the names of what n counts, and where.

    Raises:
        ValueError: if the first is neither ``"samples"`` nor ``"sources"``, or the second neither ``"batch"`` nor
            ``"dataset"``.
    """
    if per not in ("batch", "dataset"):
        raise ValueError(f"Expected `per` to be 'batch' or 'dataset', but got {per!r}.")
    if counts not in ("samples", "sources"):
        raise ValueError(f"Expected `counts` to be 'samples' or 'sources', but got {counts!r}.")


def check_number(name: str, value: object) -> None:
    """Require a finite number.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Expected `{name}` to be a number, but got {value!r} ({type(value).__name__}).")
    if not math.isfinite(value):
        raise ValueError(f"Expected `{name}` to be finite, but got {value}.")


def check_size(name: str, value: object, *, positive: bool = False) -> None:
    """Require a finite nonnegative (or positive) number.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is NaN, infinite or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Expected `{name}` to be a number, but got {value!r} ({type(value).__name__}).")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        allowed = "positive" if positive else "at least 0"
        raise ValueError(f"Expected `{name}` to be finite and {allowed}, but got {value}.")


def check_radius(name: str, value: object) -> None:
    """Require a finite nonnegative number, or a tensor of such numbers.

    Raises:
        TypeError: if it is neither, or the tensor is not floating point.
        ValueError: if a number is NaN, infinite or negative.
    """
    if not isinstance(value, Tensor):
        return check_size(name, value)
    if not value.is_floating_point():
        raise TypeError(f"Expected `{name}` to be a number or a floating point tensor, but got {value.dtype}.")
    if not bool((torch.isfinite(value) & (value >= 0)).all()):
        raise ValueError(f"Expected all of `{name}` to be finite and at least 0, but got {value}.")
    return None


def check_order(name: str, value: object, allowed: Collection[float]) -> None:
    """Require one of the supported norms.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is not one of ``allowed``.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Expected `{name}` to be a number, but got {value!r} ({type(value).__name__}).")
    if value not in allowed:
        raise ValueError(f"Expected `{name}` to be one of {sorted(allowed)}, but got {value}.")
