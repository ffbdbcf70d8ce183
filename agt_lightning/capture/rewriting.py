"""Values with their samples first, written into a graph beside the captured ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch._ops import OpOverload

from agt_lightning.capture.graph import Call, Graph, Mask, Reference, map_references
from agt_lightning.capture.layout import FIRST, Layout
from agt_lightning.capture.reached import inputs_of_samples, reached

_aten = torch.ops.aten


@dataclass(frozen=True)
class Moved:
    """The value of a captured one with its samples first.

    Args:
        name: of the value.
        layout: of the captured value; None if no axis counts samples any more, as in a mean over all.
    """

    name: str
    layout: Layout | None


class Rewriting:
    """A graph that is being rewritten: its calls, and what replaces them.

    Args:
        graph: the captured graph.
        samples: number of samples of the captured batch.
    """

    def __init__(self, graph: Graph, samples: int) -> None:
        self.graph = graph
        self.samples = samples
        self.shapes = dict(graph.shapes)
        self.types = dict(graph.types)
        self.producers: Mapping[str, Call] = {call.name: call for call in graph.calls}
        leaves = inputs_of_samples(graph, samples)
        self.on_samples = reached(graph, leaves)
        self.moved: dict[str, Moved] = {leaf: Moved(leaf, FIRST) for leaf in leaves}
        self.calls: list[Call] = []
        self._numbers = itertools.count()
        self._masks: dict[str, Layout] = {}

    def layout(self, name: str) -> Layout:
        """Return where the samples of a captured value are."""
        layout = self.moved[name].layout
        assert layout is not None
        return layout

    def result(self) -> Graph:
        """Return the graph with all calls, captured and written ones."""
        output = self.moved.get(self.graph.output)
        in_place = output is not None and output.layout in (None, FIRST)
        name = output.name if output is not None and in_place else self.graph.output
        graph = replace(self.graph, calls=tuple(self.calls), shapes=self.shapes, types=self.types, output=name)
        return self._with_masks(graph)

    def mask(self, name: str, layout: Layout) -> str | None:
        """Return a mask of dropout with its samples first; None if the value is none, or has them elsewhere.

        The mask is drawn as it was captured. It stays so if a captured call is read that needs it.

        Args:
            name: of the value.
            layout: where the samples are that the mask meets.
        """
        mask, shape = self.graph.masks.get(name), self.shapes[name]
        sized = shape[layout.axis : layout.axis + 1] == (self.samples * layout.folded,)
        if not isinstance(mask, Mask) or not sized or self._masks.setdefault(name, layout) != layout:
            return None
        return name

    def _with_masks(self, graph: Graph) -> Graph:
        """Return the graph with the masks that rewritten calls read, with their samples first."""
        captured, read = set(self.producers), {graph.output}
        by_captured: set[str] = set()
        for call in reversed(graph.calls):
            if call.name in read:
                read.update(call.inputs)
                by_captured.update(call.inputs if call.name in captured else ())
        moved = {name: layout for name, layout in self._masks.items() if name not in by_captured}
        masks = {
            name: replace(mask, layout=moved[name]) if name in moved and isinstance(mask, Mask) else mask
            for name, mask in graph.masks.items()
        }
        shapes = {name: layout.first(graph.shapes[name]) for name, layout in moved.items()}
        return replace(graph, masks=masks, shapes={**graph.shapes, **shapes})

    def write(self, call: Call, op: OpOverload, arguments: Mapping[str, object], shape: Sequence[int]) -> str:
        """Append a call in place of a captured one and return the name of its result."""
        name = f"{call.name}.samples_first.{next(self._numbers)}"
        complete = {a.name: arguments.get(a.name, a.default_value) for a in op._schema.arguments}
        extra = {key: value for key, value in arguments.items() if key not in complete}
        self.calls.append(replace(call, name=name, op=op, arguments=complete | extra, shape=tuple(shape)))
        self.shapes[name], self.types[name] = tuple(shape), call.dtype
        return name

    def finished(self, call: Call, layout: Layout, arguments: Mapping[str, object]) -> Moved:
        """Write a call with other arguments, whose captured result has this layout."""
        return Moved(self.write(call, call.op, {**call.arguments, **arguments}, layout.first(call.shape)), layout)

    def reshaped(self, call: Call, name: str, shape: Sequence[int]) -> str:
        """Return a value in another shape."""
        if self.shapes[name] == tuple(shape):
            return name
        return self._rearranged(call, name, _aten.reshape.default, {"shape": list(shape)}, shape)

    def permuted(self, call: Call, name: str, order: Sequence[int]) -> str:
        """Return a value with its axes in another order."""
        if list(order) == sorted(order):
            return name
        shape = [self.shapes[name][axis] for axis in order]
        return self._rearranged(call, name, _aten.permute.default, {"dims": list(order)}, shape)

    def _rearranged(
        self, call: Call, name: str, op: OpOverload, arguments: Mapping[str, object], shape: Sequence[int]
    ) -> str:
        kind = self.types.get(name) or self.producers[name].dtype
        return self.write(replace(call, dtype=kind), op, {"self": Reference(name), **arguments}, shape)


def renamed(call: Call, names: Mapping[str, str]) -> dict[str, object]:
    """Return the arguments of a call with other names for some of its inputs."""
    return {
        key: map_references(value, lambda reference: Reference(names.get(reference.name, reference.name)))
        for key, value in call.arguments.items()
    }
