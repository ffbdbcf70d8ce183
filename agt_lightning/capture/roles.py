"""Roles in a captured training step: the features and labels of the batch, and the per-sample terms of the loss.

The user need not name them: they follow from where a batch entry first *meets* parameters, see
`agt_lightning.capture.meetings`. Entries that enter the model are features; an adversary with ε > 0 moves those of
floating point. Of the entries that only look like labels, the one that is no weight is the label. Whatever cannot be
decided in this way is a doubt, which the user resolves by naming features or labels.

The loss must be a sum, or mean, over samples of per-sample terms, possibly scaled and added. Then the gradient is a
weighted sum of per-sample gradients, and a poisoned sample changes its own only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agt_lightning.capture.entries import Entry
from agt_lightning.capture.entry_roles import EntryRoles, LabelKind, NamedRoles
from agt_lightning.capture.graph import Graph
from agt_lightning.capture.meetings import Meetings
from agt_lightning.capture.reached import inputs_of_samples, reached
from agt_lightning.capture.role_finder import RoleFinder
from agt_lightning.capture.terms import LossTerm, Terms

__all__ = ["EntryRoles", "LabelKind", "LossRoles", "NamedRoles", "analyze"]


@dataclass(frozen=True)
class LossRoles:
    """A captured loss and the roles of its inputs.

    Args:
        graph: the captured graph, whose output is the scalar loss.
        samples: names of values whose axis 0 counts samples.
        trainable: names of values that depend on a trainable parameter.
        entries: what an adversary can move.
        names: names of leaves in the batch.
        prediction: name of the value that the label meets first; None if there is no label.
        target: name of the label's value where it meets the prediction.
        terms: the loss as a sum of terms.
        reduced: names of values after the reduction over samples.
        problems: reasons why this loss cannot be certified.
        penalties: numbers of parameters alone that are added to the loss, with the coefficient of each.
    """

    graph: Graph
    samples: frozenset[str]
    trainable: frozenset[str]
    entries: EntryRoles
    names: Mapping[str, str]
    prediction: str | None
    target: str | None
    terms: tuple[LossTerm, ...]
    reduced: frozenset[str]
    problems: tuple[str, ...]
    penalties: Mapping[str, float] = field(default_factory=dict)

    @property
    def features(self) -> tuple[str, ...]:
        """The leaves that an adversary with ε > 0 moves."""
        return self.entries.features

    @property
    def labels(self) -> tuple[str, ...]:
        """The leaves that an adversary with ν > 0 moves."""
        return self.entries.labels

    @property
    def label_kinds(self) -> Mapping[str, LabelKind]:
        """The kind of each leaf that predictions are compared with, labels first."""
        return self.entries.label_kinds

    @property
    def label_kind(self) -> LabelKind:
        """The kind of the label that meets the predictions first."""
        return next(iter(self.label_kinds.values()), LabelKind.NONE)

    def record(self) -> dict[str, object]:
        """Return the roles by names of the batch, ready for JSON."""
        return {
            "features": [self.names[leaf] for leaf in self.features],
            "labels": {self.names[leaf]: self.label_kinds[leaf].name.lower() for leaf in self.labels},
            "not_moved": dict(self.entries.unmoved),
        }

    def summary(self) -> str:
        """Return the roles in one line, for the log."""
        features = ", ".join(self.names[leaf] for leaf in self.features) or "none"
        kinds = [f"{self.names[leaf]} ({self.label_kinds[leaf].name.lower()})" for leaf in self.labels]
        unmoved = [f"{name} ({reason})" for name, reason in self.entries.unmoved.items()]
        parts = [f"features: {features}", f"label{'s' * (len(kinds) > 1)}: {', '.join(kinds) or 'none'}"]
        return "; ".join(parts + [f"not moved: {', '.join(unmoved)}"] * bool(unmoved))


def analyze(
    graph: Graph,
    batch_size: int,
    is_trainable: Callable[[str], bool],
    entries: Sequence[Entry],
    named: NamedRoles | None = None,
) -> LossRoles:
    """Find the roles of the inputs and the terms of the loss.

    Args:
        graph: a captured loss.
        batch_size: number of samples of the captured batch.
        is_trainable: whether a parameter, by its name in the module, is trained.
        entries: the tensors of the captured batch.
        named: the roles that the user names; None if there are none.
    """
    leaves = inputs_of_samples(graph, batch_size)
    samples = reached(graph, leaves)
    sources = {name for name, target in graph.parameters.items() if is_trainable(target)}
    reduction = Terms(graph, samples, frozenset(leaves))
    reduced = frozenset(reduction.reduced)
    meetings = Meetings(graph, [leaf for leaf in graph.leaves if leaf in leaves], samples, reduced)
    finder = RoleFinder(graph, meetings, entries)
    roles = finder.named(named) if named is not None and named.any else finder.found()
    first = next((meetings.comparisons[leaf] for leaf in roles.label_kinds if leaf in meetings.comparisons), None)
    return LossRoles(
        graph=graph,
        samples=samples - reduced,
        trainable=reached(graph, sources, through_detach=False),
        entries=roles,
        names={leaf: entries[position].name for leaf, position in graph.leaves.items()},
        prediction=first.prediction if first else None,
        target=first.target if first else None,
        terms=reduction.terms,
        reduced=reduced,
        problems=(*reduction.problems, *roles.problems),
        penalties=reduction.penalties,
    )
