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

    A mask of parameters alone can have as many rows. Random numbers may be scaled or compared before they are a mask.

    Args:
        graph: the graph.
        size: number of samples of the captured batch.
    """
    entries = {leaf for leaf in graph.leaves if graph.shapes[leaf][:1] == (size,)}
    entries |= {name for name, counts_samples in graph.given.items() if counts_samples}
    computed, parameters = reached(graph, entries), reached(graph, set(graph.parameters))
    rows = {mask for mask in graph.masks if graph.shapes[mask][:1] == (size,)}
    return entries | {mask for mask in rows if _meets(graph, mask, computed, parameters)}


def _meets(graph: Graph, mask: str, computed: frozenset[str], parameters: frozenset[str]) -> bool:
    """Return whether a mask, or what is made of it alone, meets values of samples, and no parameters before."""
    alone = {mask}
    for call in graph.calls:
        others = [name for name in call.inputs if name not in alone]
        if len(others) == len(call.inputs):
            continue
        if computed.intersection(others):
            return True
        if not parameters.intersection(others):
            alone.add(call.name)
    return False
