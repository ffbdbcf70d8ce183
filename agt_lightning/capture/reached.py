"""What depends on what in a captured graph."""

import torch

from agt_lightning.capture.graph import Graph


def reached(graph: Graph, sources: set[str], *, through_detach: bool = True) -> frozenset[str]:
    """Return all values that depend on one of the sources, including the sources.

    Args:
        graph: the graph.
        sources: value names.
        through_detach: whether a detached value counts as dependent: its value does, its gradient does not.
    """
    names = set(sources)
    for call in graph.calls:
        if names.intersection(call.inputs) and (through_detach or call.op is not torch.ops.aten.detach.default):
            names.add(call.name)
    return frozenset(names)
