"""The trainable end of a network: linear layers with ReLUs between them, on features that training does not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agt_lightning.capture import Call, Graph
from agt_lightning.interval import Interval
from agt_lightning.rules.base import name_of
from agt_lightning.rules.shape import RESHAPES

_aten = torch.ops.aten

CASTS = frozenset({_aten.to.dtype, _aten._to_copy.default})


@dataclass(frozen=True)
class HeadLayer:
    """A trained linear layer.

    Args:
        weight: name of its weight in the module, (o, k).
        bias: name of its bias; None without one.
        trains_bias: whether there is a bias and it is trained.
        output: name of its result in the graph, (b, o).
    """

    weight: str
    bias: str | None
    trains_bias: bool
    output: str


@dataclass(frozen=True)
class Head:
    """The trained layers of a network, first to last.

    Args:
        input: name of the value that enters the first layer, (b, k); it depends on no trained parameter.
        layers: linear layers; between two of them stands a ReLU and nothing else.
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
        return tuple(
            name
            for layer in self.layers
            for name in (layer.weight, layer.bias if layer.trains_bias else None)
            if name is not None
        )


class HeadBounds(Protocol):
    """What a domain knows of a head's values for every parameter it allows.

    Attributes:
        head: the layers, by the names of one captured graph.
        dependent: names of all values of that graph that depend on their parameters.
    """

    @property
    def head(self) -> Head: ...  # noqa: D102 - stands in the class docstring

    @property
    def dependent(self) -> frozenset[str]: ...  # noqa: D102

    def enclose(self, inputs: Interval) -> dict[str, Interval]:
        """Bounds on the result of each layer by value name, for features (b, d); empty if nothing is known."""
        ...

    def margins(self, inputs: Interval, target: Tensor) -> Interval:
        """Bounds on ``f_target - f_k``, (b, K), where `enclose` knows something."""
        ...


class HeadError(ValueError):
    """The network does not end in a head; the message says what stands in the way, and the way out."""


def read_head(graph: Graph, output: str, parameters: Mapping[str, str], trained: frozenset[str]) -> Head:
    """Walk back from the outputs through linear layers and ReLUs to the first value that training does not change.

    Args:
        graph: a captured graph.
        output: name of the outputs, or of a reshaped copy of them.
        parameters: names of parameters in the module by value name.
        trained: names of all values that depend on a trained parameter.

    Raises:
        HeadError: if anything else stands on the way.
    """
    producers = {call.name: call for call in graph.calls}
    name = unshaped(producers, output)
    layers: list[HeadLayer] = []
    while name in trained:
        call = producers.get(name)
        layers.append(_layer(call, name, parameters, trained))
        assert call is not None
        name = call.inputs[0]
        if name in trained:
            name = _before_relu(producers.get(name), name)
    if not layers:
        raise HeadError("the outputs depend on no trained parameter")
    head = Head(name, tuple(reversed(layers)))
    repeated = {parameter for parameter in head.parameters if head.parameters.count(parameter) > 1}
    if repeated:
        raise HeadError(f"{', '.join(sorted(repeated))} is used in two layers; give each layer its own")
    missing = sorted({parameters[value] for value in trained if value in parameters} - set(head.parameters))
    if missing:
        raise HeadError(f"{', '.join(missing)} is trained outside the last linear and ReLU layers; freeze it")
    return head


def unshaped(producers: Mapping[str, Call], name: str) -> str:
    """The value that ``name`` is a reshaped copy of, in some floating point type: a cast to integers truncates."""
    call = producers.get(name)
    while call is not None and (call.op in RESHAPES or call.op in CASTS and call.dtype.is_floating_point):
        name = call.inputs[0]
        call = producers.get(name)
    return name


def _layer(call: Call | None, name: str, parameters: Mapping[str, str], trained: frozenset[str]) -> HeadLayer:
    if call is None or call.op is not _aten.linear.default or len(call.shape) != 2:
        what = f"`{name_of(call)}` at {call.source}" if call is not None else f"`{name}`"
        raise HeadError(f"{what} is trained or stands between trained layers, where only linear layers and ReLU may be")
    weight, *bias = call.inputs[1:]
    if weight not in trained:
        raise HeadError(f"`{parameters.get(weight, weight)}` is frozen behind or beside trained parameters; train it")
    if weight not in parameters or any(value not in parameters for value in bias):
        raise HeadError(f"the linear layer at {call.source} has a weight that is computed; train the weight itself")
    return HeadLayer(
        parameters[weight],
        parameters[bias[0]] if bias else None,
        bool(bias) and bias[0] in trained,
        name,
    )


def _before_relu(call: Call | None, name: str) -> str:
    if call is None or call.op is not _aten.relu.default:
        what = f"`{name_of(call)}` at {call.source}" if call is not None else f"`{name}`"
        raise HeadError(f"{what} stands between trained layers, where only ReLU may be")
    return call.inputs[0]
