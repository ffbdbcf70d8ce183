"""Where a value of a network comes from: the calls since the last layers with parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b

import torch

from agt_lightning.capture import Call, Graph
from agt_lightning.capture.counted_labels import CountedLabels
from agt_lightning.capture.graph import Mask, Reference
from agt_lightning.certificates.start import tensor_digest
from agt_lightning.rules.shape import CASTS, RESHAPES

_aten = torch.ops.aten

_SCALINGS = frozenset({_aten.mul.Tensor, _aten.div.Tensor})
_VIEWS = frozenset({*RESHAPES, _aten.select.int, _aten.slice.Tensor})
_COPIES = frozenset({_aten.clone.default, _aten.contiguous.default, _aten.dropout.default, _aten.detach.default})


def same_values(graph: Graph, name: str) -> str:
    """Return the first of a chain of values with the same elements in the same order: reshaped, copied or cast.

    Args:
        graph: a captured graph.
        name: the last value of the chain.
    """
    return _first(graph, name, _copied)


def same_order(graph: Graph, name: str) -> str:
    """Return the first of a chain of values whose elements are also multiplied by positive numbers, or by masks.

    Args:
        graph: a captured graph.
        name: the last value of the chain.
    """
    return _first(graph, name, lambda graph, call: _copied(graph, call) or _scaled(graph, call))


def _first(graph: Graph, name: str, source: Callable[[Graph, Call], str | None]) -> str:
    call = graph.producer(name)
    while call is not None:
        earlier = source(graph, call)
        if earlier is None:
            break
        name, call = earlier, graph.producer(earlier)
    return name


def _copied(graph: Graph, call: Call) -> str | None:
    """Return the input whose elements the result has; None if they change, or are fewer or more."""
    if call.op in CASTS:
        keeps = call.dtype.is_floating_point
    elif call.op in _VIEWS:
        keeps = torch.Size(call.shape).numel() == torch.Size(graph.shapes[call.inputs[0]]).numel()
    else:
        keeps = call.op in _COPIES
    return call.inputs[0] if keeps else None


def _scaled(graph: Graph, call: Call) -> str | None:
    """Return the input that the result is a positive multiple of, or that a dropout mask is applied to."""
    if call.op not in _SCALINGS:
        return None
    factor = call.arguments["other"]
    if isinstance(factor, int | float):
        return call.inputs[0] if factor > 0 else None
    unmasked = [name for name in call.inputs if not isinstance(graph.masks.get(name), Mask | CountedLabels)]
    return unmasked[0] if len(unmasked) == 1 < len(call.inputs) else None


def origin(graph: Graph, parameters: Mapping[str, str], name: str) -> str:
    """Return a digest of how a value is computed from the last layers with parameters, for any size of the batch.

    Two values of one digest, of the same graph or of two graphs of one module, are the same function of the inputs of
    these layers, up to a positive factor and a reshape. What precedes these layers does not enter.

    Args:
        graph: a captured graph.
        parameters: names of parameters in the module by value name.
        name: the value.
    """
    return _Origins(graph, parameters).of(name)


class _Origins:
    """The digests of the values of one graph."""

    def __init__(self, graph: Graph, parameters: Mapping[str, str]) -> None:
        self.graph = graph
        self.parameters = parameters
        self.calls = {call.name: call for call in graph.calls}
        self.digests: dict[str, str] = {}

    def of(self, name: str) -> str:
        name = same_order(self.graph, name)
        if name not in self.digests:
            self.digests[name] = blake2b(self._text(name).encode(), digest_size=16).hexdigest()
        return self.digests[name]

    def _text(self, name: str) -> str:
        graph = self.graph
        if name in self.parameters:
            return f"parameter {self.parameters[name]}"
        if name in graph.buffers:
            return f"buffer {graph.buffers[name]}"
        if name in graph.constants:
            return f"constant {tensor_digest(graph.constants[name])}"
        if name not in self.calls:
            return "data"
        call = self.calls[name]
        ends = any(value in self.parameters for value in call.inputs)
        inputs = [self.of(value) if not ends or self._is_fixed(value) else "data" for value in call.inputs]
        settings = {key: value for key, value in call.arguments.items() if not _has_reference(value)}
        return f"{call.op} {inputs} {settings}"

    def _is_fixed(self, name: str) -> bool:
        return name in self.parameters or name in self.graph.buffers or name in self.graph.constants


def _has_reference(argument: object) -> bool:
    if isinstance(argument, list | tuple):
        return any(_has_reference(item) for item in argument)
    return isinstance(argument, Reference)
