"""The roles of batch entries: what an adversary moves by ε, what by ν, and what not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from agt_lightning.capture.entries import Selection


class LabelKind(Enum):
    """A kind of label, determined by the loss that uses it."""

    NONE = "no label"
    CLASS = "one of several classes"
    BINARY = "zero or one"
    NUMBER = "real numbers"


@dataclass(frozen=True)
class NamedRoles:
    """The entries that a user names; with either, no other entry can be poisoned.

    Args:
        features: entries that an adversary moves by ε; None if the user names none.
        labels: entries that an adversary moves by ν; None if the user names none.
    """

    features: Selection | None = None
    labels: Selection | None = None

    @property
    def any(self) -> bool:
        """Whether the user names roles."""
        return self.features is not None or self.labels is not None


@dataclass(frozen=True)
class EntryRoles:
    """Which entries of a batch an adversary can move.

    Args:
        features: leaf names of the entries that it moves by ε.
        labels: leaf names of the entries that it moves by ν.
        label_kinds: kind of each label, and of each other entry that predictions are compared with; labels first.
        unmoved: all other entries of the batch by their name in it, each with the reason.
        feature_doubts: why it is not certain what ε moves, each with its way out.
        label_doubts: the same for ν.
        problems: why the roles that the user names do not fit the loss.
    """

    features: tuple[str, ...]
    labels: tuple[str, ...]
    label_kinds: Mapping[str, LabelKind]
    unmoved: Mapping[str, str]
    feature_doubts: tuple[str, ...] = ()
    label_doubts: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
