"""The trainable end of a network: linear layers with ReLUs between them, on features that training does not change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agt_lightning.capture import Call, Graph, reached
from agt_lightning.interval import Interval
from agt_lightning.rules.base import name_of
from agt_lightning.rules.shape import CASTS, RESHAPES

_aten = torch.ops.aten


@dataclass(frozen=True)
class HeadLayer:
    """A trained linear layer.

    Args:
        weight: name of its weight in the module, (o, k).
        bias: name of its bias; None if it has none.
        trains_bias: whether there is a bias and it is trained.
        output: name of its result in the graph, (b, o).
    """

    weight: str
    bias: str | None
    trains_bias: bool
    output: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of its trained parameters."""
        return (self.weight,) if self.bias is None or not self.trains_bias else (self.weight, self.bias)


@dataclass(frozen=True)
class Head:
    """The trained layers of a network, first to last.

    Args:
        input: name of the value that enters the first layer, (b, k); it depends on no trained parameter.
        layers: linear layers, with a ReLU and nothing else between two of them.
    """

    input: str
    layers: tuple[HeadLayer, ...]

    @property
    def output(self) -> str:
        """Name of the last layer's result."""
        return self.layers[-1].output

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all trained parameters."""
        return tuple(name for layer in self.layers for name in layer.parameters)


class HeadBounds(Protocol):
    """A domain's bounds on the values of a head, over all parameters in its set.

    Attributes:
        head: the layers, by the names of one captured graph.
        dependent: names of all values of that graph that depend on their parameters.
    """

    @property
    def head(self) -> Head: ...  # noqa: D102 - described in the class docstring

    @property
    def dependent(self) -> frozenset[str]: ...  # noqa: D102

    def bound_values(self, inputs: Interval) -> dict[str, Interval]:
        """Bound the result of each layer, by value name, for features (b, d); empty if the domain has no bounds."""
        ...

    def margins(self, inputs: Interval, target: Tensor) -> Interval:
        """Bound ``f_target - f_k``, (b, K); only for features on which `bound_values` is not empty."""
        ...


class HeadError(ValueError):
    """The network does not end in a head; the message names the obstacle and the way out."""


def match_head(graph: Graph, output: str, parameters: Mapping[str, str], dependent: frozenset[str]) -> Head:
    """Match linear layers and ReLUs from the outputs back to the first value that training does not change.

    Args:
        graph: a captured graph.
        output: name of the outputs, or of a reshaped copy of them.
        parameters: names of parameters in the module by value name.
        dependent: names of all values that depend on a trained parameter, the parameters themselves included.

    Raises:
        HeadError: if any other call lies between, or a parameter is trained elsewhere.
    """
    producers = {call.name: call for call in graph.calls}
    name = unshaped(graph, output)
    layers: list[HeadLayer] = []
    while name in dependent:
        call = producers.get(name)
        layers.append(_layer(call, name, parameters, dependent))
        assert call is not None
        name = call.inputs[0]
        if name in dependent:
            name = _before_relu(producers.get(name), name)
    if not layers:
        raise HeadError("the outputs depend on no trained parameter")
    head = Head(name, tuple(reversed(layers)))
    repeated = {parameter for parameter in head.parameters if head.parameters.count(parameter) > 1}
    if repeated:
        raise HeadError(f"{', '.join(sorted(repeated))} is used in two layers; give each layer its own")
    missing = sorted({parameters[value] for value in dependent if value in parameters} - set(head.parameters))
    if missing:
        raise HeadError(f"{', '.join(missing)} is trained outside the last linear and ReLU layers; freeze it")
    return head


def match_trained(
    graph: Graph, parameters: Mapping[str, str], trained: Collection[str]
) -> tuple[Head, frozenset[str]] | None:
    """Match the head of these parameters in another graph of the module, such as its `forward`.

    Args:
        graph: a captured graph of the module.
        parameters: names of parameters in the module by value name.
        trained: names of the head's parameters in the module.

    Returns:
        The head, and the names of all values that are computed from its parameters. None if the graph does not use
        these parameters as a head.
    """
    values = {value for value, name in parameters.items() if name in trained and value in graph.shapes}
    dependent = reached(graph, values)
    linear = [call.name for call in graph.calls if call.op is _aten.linear.default and values & set(call.inputs)]
    try:
        head = match_head(graph, linear[-1] if linear else graph.output, parameters, dependent)
    except HeadError:
        return None
    return head, dependent - values


def unshaped(graph: Graph, name: str) -> str:
    """Return the value that ``name`` is a reshaped copy of, in some floating point type.

    A cast that rounds ends the search.
    """
    call = graph.producer(name)
    while call is not None and (call.op in RESHAPES or call.op in CASTS and not graph.narrows(call)):
        name = call.inputs[0]
        call = graph.producer(name)
    return name


def _layer(call: Call | None, name: str, parameters: Mapping[str, str], dependent: frozenset[str]) -> HeadLayer:
    if call is None or call.op is not _aten.linear.default or len(call.shape) != 2:
        what = f"`{name_of(call)}` at {call.source}" if call is not None else f"`{name}`"
        raise HeadError(f"{what} is trained or stands between trained layers, where only linear layers and ReLU may be")
    weight, *bias = call.inputs[1:]
    if weight not in dependent:
        raise HeadError(f"`{parameters.get(weight, weight)}` is frozen behind or beside trained parameters; train it")
    if weight not in parameters or any(value not in parameters for value in bias):
        raise HeadError(f"the linear layer at {call.source} has a weight that is computed; train the weight itself")
    return HeadLayer(
        parameters[weight],
        parameters[bias[0]] if bias else None,
        bool(bias) and bias[0] in dependent,
        name,
    )


def _before_relu(call: Call | None, name: str) -> str:
    if call is None or call.op is not _aten.relu.default:
        what = f"`{name_of(call)}` at {call.source}" if call is not None else f"`{name}`"
        raise HeadError(f"{what} stands between trained layers, where only ReLU may be")
    return call.inputs[0]
