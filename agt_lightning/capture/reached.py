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


def inputs_of_samples(graph: Graph, size: int) -> set[str]:
    """Return the inputs whose first axis counts samples: batch entries of as many rows, and masks of what they become.

    A mask of parameters alone can have as many rows.

    Args:
        graph: the graph.
        size: number of samples of the captured batch.
    """
    entries = {leaf for leaf in graph.leaves if graph.shapes[leaf][:1] == (size,)}
    entries |= {name for name, counts_samples in graph.given.items() if counts_samples}
    computed = reached(graph, entries)
    masked = {name for call in graph.calls if computed.intersection(call.inputs) for name in call.inputs}
    return entries | {mask for mask in masked & graph.masks.keys() if graph.shapes[mask][:1] == (size,)}
