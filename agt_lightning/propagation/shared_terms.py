"""Summands of a loss that depend on no sample, told apart by what they are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agt_lightning.capture import Graph, LossRoles, reached
from agt_lightning.capture.entries import Entry


@dataclass(frozen=True)
class SharedTerms:
    """The summands of a loss that depend on parameters and on no sample.

    Args:
        calls: names of the calls that nothing but these summands needs.
        leaves: names of the batch entries that they are computed from.
    """

    calls: frozenset[str] = frozenset()
    leaves: frozenset[str] = frozenset()

    @classmethod
    def of(cls, roles: LossRoles) -> SharedTerms:
        """Find them in a loss."""
        graph, known = roles.graph, roles.samples | roles.reduced
        totals = {name for call in graph.calls if call.name in roles.reduced for name in call.inputs}
        of_parameters = reached(graph, set(graph.parameters))
        terms = {name for name in (*totals, graph.output) if name in of_parameters and name not in known}
        needed = _needed(graph, terms)
        others = _needed(graph, {name for call in graph.calls if call.name in roles.samples for name in call.inputs})
        calls = {call.name for call in graph.calls if call.name in needed - others}
        return cls(frozenset(calls), frozenset(needed & graph.leaves.keys()))


def size_problems(roles: LossRoles, terms: SharedTerms, entries: Sequence[Entry]) -> list[str]:
    """Return a problem if a summand is computed from entries with another number of rows than the others."""
    graph = roles.graph
    by_leaf: Mapping[str, Entry] = {leaf: entries[position] for leaf, position in graph.leaves.items()}
    other = [
        by_leaf[leaf] for leaf in graph.leaves if leaf in terms.leaves and graph.shapes[leaf][:1] not in ((), (1,))
    ]
    samples = [by_leaf[leaf] for leaf in graph.leaves if leaf in roles.samples]
    if not other or not samples:
        return []
    return [
        f"{other[0].name} has {other[0].shape[0]} rows and {samples[0].name} has {samples[0].shape[0]}, but a sample "
        "is one row of all tensors of the batch. Use loaders with batches of one size (`drop_last=True` for the last "
        "ones), or train on one loader."
    ]


def _needed(graph: Graph, names: set[str]) -> set[str]:
    """Return the values that some values are computed from, these included."""
    needed = set(names)
    for call in reversed(graph.calls):
        if call.name in needed:
            needed.update(call.inputs)
    return needed
