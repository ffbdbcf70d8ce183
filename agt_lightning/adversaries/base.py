"""The role of an adversary, and the validation that all of them share."""

import math
from collections.abc import Collection
from numbers import Integral
from typing import Protocol

import torch
from torch import Tensor

from agt_lightning.capture.roles import LabelKind
from agt_lightning.rules.base import Value


class Adversary(Protocol):
    """A threat model: up to ``n`` samples of each batch are changed, within limits of its own."""

    @property
    def n(self) -> int:
        """Largest number of poisoned samples per optimizer step."""

    def problems(self, label_kind: LabelKind, labels: int, features: int) -> list[str]:
        """Why this adversary does not fit a training objective, with the way out.

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
        """Every value that the features of poisoned samples can take."""

    def poisoned_labels(self, labels: Tensor, label_kind: LabelKind) -> Value:
        """Every value that the labels of poisoned samples can take."""


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
    """Require one of the norms that are supported.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is another number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Expected `{name}` to be a number, but got {value!r} ({type(value).__name__}).")
    if value not in allowed:
        raise ValueError(f"Expected `{name}` to be one of {sorted(allowed)}, but got {value}.")
