"""The search for the role of each batch entry, from where it meets parameters or from the names that a user gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from agt_lightning.capture.entries import Entry, Selection, listing, selected
from agt_lightning.capture.entry_roles import EntryRoles, LabelKind, NamedRoles
from agt_lightning.capture.graph import Graph
from agt_lightning.capture.meetings import Meeting, Meetings
from agt_lightning.capture.reached import reached

_aten = torch.ops.aten


class RoleFinder:
    """A finder of roles, from the graph alone or with names that a user gives.

    Args:
        graph: the captured loss.
        meetings: of its batch entries.
        entries: the tensors of the captured batch.
    """

    def __init__(self, graph: Graph, meetings: Meetings, entries: Sequence[Entry]) -> None:
        self.graph = graph
        self.meetings = meetings
        self.entries = entries
        self.of = {leaf: entries[position] for leaf, position in graph.leaves.items()}
        kinds = {leaf: self._kind(leaf) for leaf in meetings.comparisons}
        self.kinds = {leaf: kind for leaf, kind in kinds.items() if leaf not in meetings.features}
        self.kinds_of_compared = kinds

    # --- from the graph --------------------------------------------------------------------------------------------

    def found(self) -> EntryRoles:
        """Return the roles that the graph determines, with doubts where it does not."""
        candidates = [leaf for leaf in self.kinds if not self.meetings.is_weight(leaf)]
        features = tuple(leaf for leaf in self.meetings.features if self.of[leaf].dtype.is_floating_point)
        labels = tuple(candidates)
        return EntryRoles(
            features=features,
            labels=labels,
            label_kinds={leaf: self.kinds[leaf] for leaf in (*labels, *self.kinds)},
            unmoved=self._unmoved({*features, *labels}, self._reason),
            feature_doubts=(*self._entangled(candidates), *self._discrete()),
            label_doubts=tuple(self._rivals(candidates)),
        )

    def _entangled(self, candidates: Sequence[str]) -> list[str]:
        """Doubt whether an entry that looks like a label is a feature, if another entry may be the label."""
        masks = frozenset(leaf for leaf, entry in self.of.items() if entry.dtype == torch.bool)
        targets = {leaf for leaf in candidates if self.meetings.is_target(leaf, masks)}
        plain = [leaf for leaf in candidates if leaf not in masks - targets]
        movable = [
            leaf
            for leaf in plain
            if self.kinds[leaf] is not LabelKind.CLASS and leaf not in targets and not self.meetings.scales_loss(leaf)
        ]
        others = self.meetings.other_targets(plain[0]) if len(plain) == 1 else plain
        if not movable or len(plain) == 1 and not others:
            return []
        return [
            f"`epsilon` is positive, but it is not certain whether {self._or(movable)} enters the model or is compared "
            f"with its predictions: {self._or(dict.fromkeys([*plain, *others]))} could be the label. "
            + self._ask("features")
        ]

    def _rivals(self, candidates: Sequence[str]) -> list[str]:
        """Doubt which entry is the label."""
        if len(candidates) != 1:
            count = len(candidates)
            return [
                f"`nu` is positive, but {count} batch entries meet the predictions like labels. " + self._ask("labels")
            ]
        rivals = self.meetings.other_targets(candidates[0])
        if not rivals:
            return []
        return [
            f"`nu` is positive, but it is not certain whether {self._or([candidates[0], *rivals])} is the label. "
            + self._ask("labels")
        ]

    def _discrete(self) -> list[str]:
        """Refuse integers that enter the model as quantities, which ε cannot move."""
        return [
            f"`epsilon` is positive, but {self.of[leaf]} holds integers that enter the model as numbers, which "
            "`epsilon` cannot move. Convert it to floating point in the data set or `on_after_batch_transfer`, so that "
            "it is moved; or name `features=` without it, and it stays as it is."
            for leaf in self.meetings.features
            if self._is_integer(leaf) and self.meetings.is_read_as_number(leaf)
        ]

    # --- with names ------------------------------------------------------------------------------------------------

    def named(self, named: NamedRoles) -> EntryRoles:
        """Return exactly the roles that the user names."""
        problems: list[str] = []
        features = self._select("features", named.features, problems)
        labels = self._select("labels", named.labels, problems)
        problems += [
            f"Both `features` and `labels` name {self.of[leaf].name}. Name it once; an `epsilon` that is larger by "
            "`nu` covers both changes."
            for leaf in features
            if leaf in labels
        ]
        problems += [
            f"`features` names {self.of[leaf]}, which `epsilon` cannot move. Convert it to floating point in the data "
            "set, or leave it out."
            for leaf in features
            if not self.of[leaf].dtype.is_floating_point
        ]
        kinds: dict[str, LabelKind] = {}
        for leaf in labels:
            kind = self.kinds_of_compared.get(leaf)
            if kind is None and not self.of[leaf].dtype.is_floating_point:
                problems.append(
                    f"`labels` names {self.of[leaf]}, but it enters the model, and no prediction is compared with it. "
                    "Name the entry that the loss compares with predictions."
                )
            kinds[leaf] = kind or LabelKind.NUMBER
        return EntryRoles(
            features=tuple(features),
            labels=tuple(labels),
            label_kinds=kinds | {leaf: kind for leaf, kind in self.kinds.items() if leaf not in kinds},
            unmoved=self._unmoved({*features, *labels}, lambda leaf: "not named"),
            feature_doubts=self._missing("epsilon", "features", "labels") if named.features is None else (),
            label_doubts=self._missing("nu", "labels", "features") if named.labels is None else (),
            problems=tuple(problems),
        )

    def _select(self, role: str, selection: Selection | None, problems: list[str]) -> list[str]:
        """Return the leaves that a user names, and add a problem for each name that fits none."""
        if selection is None:
            return []
        try:
            positions = selected(self.entries, selection)
        except LookupError as error:
            problems.append(f"`{role}` does not fit the batch: {error.args[0]}.")
            return []
        leaves = [leaf for leaf, position in self.graph.leaves.items() if position in positions]
        read = {self.graph.leaves[leaf] for leaf in leaves}
        problems += [
            f"`{role}` names {self.entries[position]}, which the loss does not read. Leave it out."
            for position in sorted(positions - read)
        ]
        problems += [
            f"`{role}` names {self.of[leaf]}, whose first axis does not count samples. Leave it out, or give each "
            "sample its own row."
            for leaf in leaves
            if leaf not in self.meetings.leaves
        ]
        return [leaf for leaf in leaves if leaf in self.meetings.leaves]

    def _missing(self, limit: str, missing: str, given: str) -> tuple[str, ...]:
        return (
            f"`{limit}` is positive, but only `{given}` names entries, and no others are poisoned. Name `{missing}` as "
            f"well, or set `{limit}=0`. The batch has {listing(self.entries)}.",
        )

    # --- facts about entries ---------------------------------------------------------------------------------------

    def _kind(self, leaf: str) -> LabelKind:
        """Return what the loss takes a leaf for wherever a prediction meets it: a class, if it does so anywhere."""
        if self.meetings.is_compared_by_value(leaf):
            return LabelKind.CLASS
        kinds = {_kind_in(self.graph, m) for m in self.meetings.meetings if m.leaf == leaf and not m.feature}
        return next(kind for kind in (LabelKind.CLASS, LabelKind.BINARY, LabelKind.NUMBER) if kind in kinds)

    def _unmoved(self, moved: set[str], reason: Callable[[str], str]) -> dict[str, str]:
        """Return the reason for each entry of the batch that no adversary moves."""
        leaves = {position: leaf for leaf, position in self.graph.leaves.items()}
        reasons: dict[str, str] = {}
        for position, entry in enumerate(self.entries):
            leaf = leaves.get(position)
            if leaf is None:
                reasons[entry.name] = "not read by the loss"
            elif leaf not in self.meetings.leaves:
                reasons[entry.name] = "the same for all samples"
            elif leaf not in moved:
                reasons[entry.name] = reason(leaf)
        return reasons

    def _reason(self, leaf: str) -> str:
        if leaf in self.kinds:
            return "weight"
        return "discrete" if leaf in self.meetings.features else "meets no parameter"

    def _is_integer(self, leaf: str) -> bool:
        dtype = self.of[leaf].dtype
        return not dtype.is_floating_point and dtype != torch.bool

    def _or(self, leaves: Sequence[str] | Mapping[str, None]) -> str:
        return " or ".join(self.of[leaf].name for leaf in leaves)

    def _ask(self, setting: str) -> str:
        others = " (and `labels=`, if `nu` is positive)" if setting == "features" else ""
        others = others or " (and `features=`, if `epsilon` is positive)"
        return f"Name what is poisoned by `{setting}=`{others}. The batch has {listing(self.entries)}."


def _kind_in(graph: Graph, meeting: Meeting) -> LabelKind:
    """Return what one call takes the label for."""
    if meeting.call.op is _aten.binary_cross_entropy_with_logits.default:
        return LabelKind.BINARY
    from_leaf = reached(graph, {meeting.leaf})
    if any(call.op is _aten.one_hot.default and call.inputs[0] in from_leaf for call in graph.calls):
        return LabelKind.CLASS
    if meeting.call.op is _aten.cross_entropy_loss.default:
        rank_of_classes = len(graph.shapes[meeting.prediction])
        return LabelKind.CLASS if len(graph.shapes[meeting.target]) < rank_of_classes else LabelKind.NUMBER
    return LabelKind.NUMBER
