"""Models whose margins are known under any edits of their training data."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from agt_lightning.errors import UnsoundBoundError


class Damage(NamedTuple):
    """The most that n edits take from a margin: ``n each + SEMax_n(samples) + n² joint``, for n up to ``most``.

    It does not fall as n grows.

    Args:
        each: for every edit, (q,).
        samples: further for the edit of a certain training sample, which can be edited once, (q, m).
        joint: by edits that act together, (q,).
        most: largest n for which this is proved.
    """

    each: Tensor
    samples: Tensor
    joint: Tensor
    most: int


class Evaluation(Protocol):
    """A model at some queries.

    Attributes:
        predicted: class c of each query, int64 (Q,).
        spare: what is left of each margin ``f_c - f_k`` in every run on the training data as they are, once all
            roundings of that run, and of any run on edited data, are taken off, (Q, K).
    """

    @property
    def predicted(self) -> Tensor: ...  # noqa: D102 - described in the class docstring

    @property
    def spare(self) -> Tensor: ...  # noqa: D102

    def edits(self, members: Tensor, label: int, rival: int) -> Damage:
        """Return what insertions and deletions take from the margin of a class against a rival.

        Args:
            members: positions of queries, int64 (q,).
            label: their class c.
            rival: k.
        """
        ...

    def replacements(self, members: Tensor, label: int, rival: int) -> Damage:
        """Return what replacements take from it."""
        ...


class EditableModel(Protocol):
    """A classifier of training data, trained anew on edited ones; the class of the largest output is predicted.

    Attributes:
        labels: class of each training sample, int64 (N,).
        classes: number of classes K.
    """

    @property
    def labels(self) -> Tensor: ...  # noqa: D102

    @property
    def classes(self) -> int: ...  # noqa: D102

    def at(self, queries: Tensor) -> Evaluation:
        """Return the model at queries (Q, d)."""
        ...


def check_samples(features: Tensor, labels: Tensor, classes: int) -> None:
    """Require training samples of known classes.

    Args:
        features: (N, d).
        labels: integers (N,).
        classes: number of classes, at least two.

    Raises:
        ValueError: if shapes do not match, or a label is no class.
        UnsoundBoundError: if a feature is NaN or infinite.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            "Expected features of shape (samples, features) and a label for each sample, but got the shapes "
            f"{tuple(features.shape)} and {tuple(labels.shape)}."
        )
    if classes < 2:
        raise ValueError(f"Expected at least 2 classes, but got {classes}.")
    if labels.is_floating_point() or not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError(f"Expected integer labels in 0..{classes - 1}, but got {labels.unique()[:8].tolist()}.")
    check_finite(features, "training features")


def check_finite(values: Tensor, name: str) -> None:
    """Require finite numbers.

    Raises:
        UnsoundBoundError: if one is NaN or infinite.
    """
    if not bool(torch.isfinite(values).all()):
        raise UnsoundBoundError(f"Expected finite {name}, but some are NaN or infinite.")
