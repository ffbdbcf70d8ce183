"""The scores behind probabilities: sigmoid and softmax at the end of a network keep the order of classes."""

from __future__ import annotations

import torch

from agt_lightning.capture import Call, Graph
from agt_lightning.certificates.origin import same_values

_aten = torch.ops.aten

_SOFTMAX = frozenset({_aten.softmax.int, _aten._softmax.default, _aten.log_softmax.int, _aten._log_softmax.default})


def before_probabilities(graph: Graph, name: str) -> str:
    """Return the value that a last sigmoid, softmax, or logarithm of one maps to ``name``.

    The largest of several such values is that of the largest probability, and the only one is positive where its
    sigmoid is above 1/2.

    Args:
        graph: a captured graph.
        name: probabilities (batch, classes), (batch,) or (batch, 1), possibly reshaped or cast.

    Returns:
        The value before these maps; ``name`` itself if there are none.
    """
    call = graph.producer(same_values(graph, name))
    if torch.Size(graph.shapes[name][1:]).numel() == 1:
        return call.inputs[0] if call is not None and call.op is _aten.sigmoid.default else name
    call = graph.producer(same_values(graph, behind_logarithm(graph, name)))
    keeps_order = call is not None and (call.op is _aten.sigmoid.default or _is_softmax_over_classes(call))
    if call is None or not keeps_order or graph.shapes[call.inputs[0]] != graph.shapes[name]:
        return name
    return call.inputs[0]


def rounded_type(graph: Graph, value: str, output: str) -> torch.dtype | None:
    """Return the coarsest type in which anything between a value and the outputs is computed; None for an input.

    Args:
        graph: a captured graph.
        value: name of the outputs, or what `before_probabilities` returns for them.
        output: name of the outputs.
    """
    call = graph.producer(output)
    if call is None:
        return None
    coarsest = call.dtype
    while call is not None and call.name != value:
        coarsest = max(coarsest, call.dtype, key=lambda each: torch.finfo(each).eps)
        call = graph.producer(call.inputs[0])
    return coarsest


def behind_logarithm(graph: Graph, name: str) -> str:
    """Return the value whose logarithm ``name`` is, possibly reshaped or cast; ``name`` itself if it is none."""
    call = graph.producer(same_values(graph, name))
    return call.inputs[0] if call is not None and call.op is _aten.log.default else name


def ends_in_sigmoid(graph: Graph, name: str) -> bool:
    """Return whether a value is a sigmoid, possibly reshaped or cast."""
    call = graph.producer(same_values(graph, name))
    return call is not None and call.op is _aten.sigmoid.default


def _is_softmax_over_classes(call: Call) -> bool:
    return call.op in _SOFTMAX and len(call.shape) == 2 and call.arguments["dim"] in (1, -1)
