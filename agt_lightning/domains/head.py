"""The trainable end of a network: linear layers with ReLUs between them, on features that training does not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agt_lightning.capture import Call, Graph
from agt_lightning.capture.graph import SATURATING
from agt_lightning.domains.losses import HeadLoss, HuberError, LogisticLoss, SoftmaxLoss, SquaredError
from agt_lightning.interval import Interval
from agt_lightning.propagation.objective import BoundedObjective
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

    def bound_values(self, inputs: Interval) -> dict[str, Interval]:
        """Bounds on the result of each layer by value name, for features (b, d); empty if nothing is known."""
        ...

    def margins(self, inputs: Interval, target: Tensor) -> Interval:
        """Bounds on ``f_target - f_k``, (b, K), where `bound_values` knows something."""
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


_aten = torch.ops.aten


@dataclass(frozen=True)
class HeadObjective:
    """A loss of the form ``Σ_i w_i ℓ(head(x_i), y_i)``.

    Args:
        head: the trained layers.
        loss: ℓ.
        target: name of the value that holds y, (b, ...).
        target_is_label: whether it is the batch's label itself, up to its shape and type.
        one_hot: whether it comes from class labels by one-hot vectors.
    """

    head: Head
    loss: HeadLoss
    target: str
    target_is_label: bool
    one_hot: bool


def read_objective(bounded: BoundedObjective) -> HeadObjective:
    """Find head, loss and target.

    Raises:
        HeadError: if the loss has another form; the message says what stands in the way.
    """
    graph, terms = bounded.program.graph, bounded.objective.terms
    producers = {call.name: call for call in graph.calls}
    term = unshaped(producers, terms[0].value) if len(terms) == 1 else None
    call = producers.get(term) if term is not None else None
    if call is None or call.op not in _LOSSES:
        raise HeadError(
            "the loss is not one call of mse_loss, huber_loss, smooth_l1_loss, binary_cross_entropy_with_logits or "
            "cross_entropy"
        )
    if terms[0].coefficient < 0:
        raise HeadError("the loss has a negative factor and is not convex")
    prediction, target, *_ = call.inputs
    if target in bounded.dependent:
        raise HeadError("the targets depend on trained parameters")
    head = read_head(graph, prediction, bounded.parameters, bounded.dependent)
    outputs = producers[head.output].shape[1]
    _require_same_elements(call, graph.shapes[prediction], graph.shapes[target], outputs)
    loss = _loss(call, 1.0 / outputs if terms[0].mean and call.op is not _aten.cross_entropy_loss.default else 1.0)
    source = unshaped(producers, target)
    label = producers.get(source)
    return HeadObjective(
        head, loss, target, source in bounded.objective.labels, label is not None and label.op is _aten.one_hot.default
    )


_LOSSES = frozenset(
    {
        _aten.mse_loss.default,
        _aten.huber_loss.default,
        _aten.smooth_l1_loss.default,
        _aten.binary_cross_entropy_with_logits.default,
        _aten.cross_entropy_loss.default,
    }
)


def _loss(call: Call, scale: float) -> HeadLoss:
    arguments = call.arguments
    if any(arguments.get(name) is not None for name in ("weight", "pos_weight")):
        raise HeadError(f"`{name_of(call)}` at {call.source} has weights; leave them out")
    if call.op is _aten.mse_loss.default:
        return SquaredError(scale)
    if call.op is _aten.huber_loss.default:
        return HuberError(scale, _float(arguments["delta"]))
    if call.op is _aten.smooth_l1_loss.default:
        if _float(arguments["beta"]) <= 0:
            raise HeadError(f"`{name_of(call)}` at {call.source} with beta=0 has no curvature bound; use beta > 0")
        return HuberError(scale, _float(arguments["beta"]), 1 / _float(arguments["beta"]))
    if call.op is _aten.binary_cross_entropy_with_logits.default:
        if arguments.get(SATURATING):
            raise HeadError("binary_cross_entropy of a sigmoid is cut off at large logits; use the form with logits")
        return LogisticLoss(scale)
    if arguments["label_smoothing"] != 0:
        raise HeadError(f"`{name_of(call)}` at {call.source} smooths labels; set `label_smoothing=0`")
    return SoftmaxLoss(scale)


def _require_same_elements(call: Call, prediction: tuple[int, ...], target: tuple[int, ...], outputs: int) -> None:
    """The loss must read each output of the head once, with a target of its own."""
    if call.op is _aten.cross_entropy_loss.default:
        if len(prediction) != 2 or len(target) != 1:
            raise HeadError(f"cross_entropy at {call.source} needs logits (batch, classes) and class labels (batch,)")
        return
    if torch.Size(prediction[1:]).numel() != outputs or target != prediction:
        raise HeadError(
            f"`{name_of(call)}` at {call.source} reads predictions {prediction} and targets {target}; give both one "
            "shape"
        )


def _float(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
