"""Recurrent layers, unrolled into the products and activations of each time step.

The state before the first step is zero; its products are left out. Kernels may add both products of a gate in one sum,
in any order, and gradients of a parameter over all time steps and samples; the calls here tell the rules so by extra
arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch._ops import OpOverload

from agt_lightning.capture.graph import (
    ITEM,
    JOINT_STEPS,
    JOINT_TERMS,
    STEPS_FIRST,
    Call,
    Graph,
    Reference,
    map_references,
)

_aten = torch.ops.aten

_CASTS = (_aten._to_copy.default, _aten.to.device, _aten.to.dtype, _aten.to.dtype_layout)
_ZEROS = (_aten.zeros.default, _aten.new_zeros.default, _aten.zeros_like.default)


@dataclass(frozen=True)
class _Weights:
    """Names of the parameters of one layer in one direction; without biases, two of them are None."""

    inputs: Reference
    state: Reference
    inputs_bias: Reference | None
    state_bias: Reference | None


class _Writer:
    """Writes calls in place of a recurrent one.

    Args:
        layer: the call to replace.
        shapes: of all values so far, to which new ones are added.
    """

    def __init__(self, layer: Call, shapes: dict[str, tuple[int, ...]]) -> None:
        self.layer = layer
        self.shapes = shapes
        self.calls: list[Call] = []
        self.steps = shapes[layer.inputs[0]][1]

    def write(self, op: OpOverload, arguments: Mapping[str, object], shape: Sequence[int]) -> Reference:
        """Append a call and return a reference to its result."""
        name = f"{self.layer.name}.{len(self.calls)}"
        complete = {a.name: arguments.get(a.name, a.default_value) for a in op._schema.arguments}
        extra = {key: value for key, value in arguments.items() if key not in complete} | {JOINT_STEPS: self.steps}
        self.calls.append(replace(self.layer, name=name, op=op, arguments=complete | extra, shape=tuple(shape)))
        self.shapes[name] = tuple(shape)
        return Reference(name)

    def product(self, value: Reference, weight: Reference, bias: Reference | None, joint: int) -> Reference:
        """``value weightᵀ + bias``, in one sum with so many other terms."""
        arguments = {"input": value, "weight": weight, "bias": bias, JOINT_TERMS: joint}
        return self.write(_aten.linear.default, arguments, (*self.shape(value)[:-1], self.shape(weight)[0]))

    def apply(self, op: OpOverload, value: Reference) -> Reference:
        """An activation."""
        return self.write(op, {"self": value}, self.shape(value))

    def combine(self, op: OpOverload, one: Reference, other: object) -> Reference:
        """A sum or product."""
        return self.write(op, {"self": one, "other": other}, self.shape(one))

    def at(self, sequence: Reference, time: int) -> Reference:
        """One step of a sequence ``(b, t, ...)``."""
        shape = self.shape(sequence)
        return self.write(_aten.select.int, {"self": sequence, "dim": 1, "index": time}, (shape[0], *shape[2:]))

    def parts(self, value: Reference, count: int) -> list[Reference]:
        """Equal parts along the last axis."""
        samples, size = self.shape(value)
        return [
            self.write(
                _aten.chunk.default, {"self": value, "chunks": count, "dim": 1, ITEM: item}, (samples, size // count)
            )
            for item in range(count)
        ]

    def stacked(self, values: Sequence[Reference]) -> Reference:
        """A sequence ``(b, t, ...)`` of its steps."""
        samples, *rest = self.shape(values[0])
        return self.write(_aten.stack.default, {"tensors": list(values), "dim": 1}, (samples, len(values), *rest))

    def joined(self, values: Sequence[Reference]) -> Reference:
        """Values side by side along the last axis."""
        if len(values) == 1:
            return values[0]
        size = sum(self.shape(value)[-1] for value in values)
        last = len(self.shape(values[0])) - 1
        return self.write(
            _aten.cat.default, {"tensors": list(values), "dim": last}, (*self.shape(values[0])[:-1], size)
        )

    def dropped(self, value: Reference) -> Reference:
        """What the next layer gets of a sequence, which in training has dropout."""
        p, train = self.layer.arguments["dropout"], self.layer.arguments["train"]
        if not p or not train:
            return value
        return self.write(
            _aten.dropout.default, {"input": value, "p": p, "train": True, STEPS_FIRST: True}, self.shape(value)
        )

    def shape(self, value: Reference) -> tuple[int, ...]:
        """Return the shape of a value in the captured batch."""
        return self.shapes[value.name]


State = tuple[Reference, ...]
Cell = Callable[[_Writer, Reference, State | None, _Weights], State]
"""One time step: from the inputs' product, the state before or None for zeros, and the weights, to the state after."""


def _gates(writer: _Writer, inputs: Reference, hidden: Reference | None, weights: _Weights) -> Reference:
    """The sum of both products."""
    if hidden is None:
        bias = weights.state_bias
        return inputs if bias is None else writer.combine(_aten.add.Tensor, inputs, bias)
    return writer.combine(_aten.add.Tensor, inputs, _of_state(writer, hidden, weights))


def _of_state(writer: _Writer, hidden: Reference, weights: _Weights) -> Reference:
    return writer.product(hidden, weights.state, weights.state_bias, writer.shape(weights.inputs)[1] + 4)


def _lstm(writer: _Writer, inputs: Reference, before: State | None, weights: _Weights) -> State:
    hidden, cell = (None, None) if before is None else before
    parts = writer.parts(_gates(writer, inputs, hidden, weights), 4)
    entry, forget, out = (writer.apply(_aten.sigmoid.default, parts[k]) for k in (0, 1, 3))
    new = writer.combine(_aten.mul.Tensor, entry, writer.apply(_aten.tanh.default, parts[2]))
    if cell is not None:
        new = writer.combine(_aten.add.Tensor, writer.combine(_aten.mul.Tensor, forget, cell), new)
    return writer.combine(_aten.mul.Tensor, out, writer.apply(_aten.tanh.default, new)), new


def _gru(writer: _Writer, inputs: Reference, before: State | None, weights: _Weights) -> State:
    reset_in, update_in, new_in = writer.parts(inputs, 3)
    if before is None and weights.state_bias is None:
        update, new = writer.apply(_aten.sigmoid.default, update_in), writer.apply(_aten.tanh.default, new_in)
        return (_mixture(writer, update, new, None),)
    if before is None:
        bias = writer.shape(new_in)[1]
        own = [_piece(writer, weights.state_bias, k, bias) for k in range(3)]
    else:
        own = writer.parts(_of_state(writer, before[0], weights), 3)
    reset, update = (
        writer.apply(_aten.sigmoid.default, writer.combine(_aten.add.Tensor, one, other))
        for one, other in ((reset_in, own[0]), (update_in, own[1]))
    )
    kept = writer.combine(_aten.mul.Tensor, reset, own[2])
    new = writer.apply(_aten.tanh.default, writer.combine(_aten.add.Tensor, new_in, kept))
    return (_mixture(writer, update, new, None if before is None else before[0]),)


def _piece(writer: _Writer, bias: Reference | None, number: int, size: int) -> Reference:
    """One part of a bias."""
    arguments = {"self": bias, "dim": 0, "start": number * size, "end": (number + 1) * size}
    return writer.write(_aten.slice.Tensor, arguments, (size,))


def _mixture(writer: _Writer, update: Reference, new: Reference, before: Reference | None) -> Reference:
    """``(1 - z) n + z h``; its roundings cover those of ``n + z (h - n)`` as well (docs/floats.md, section 4.5)."""
    rest = writer.write(_aten.rsub.Scalar, {"self": update, "other": 1, "alpha": 1}, writer.shape(update))
    fresh = writer.combine(_aten.mul.Tensor, rest, new)
    if before is None:
        return fresh
    kept = writer.combine(_aten.mul.Tensor, update, before)
    return writer.combine(_aten.add.Tensor, fresh, kept)


def _plain(activation: OpOverload) -> Cell:
    def cell(writer: _Writer, inputs: Reference, before: State | None, weights: _Weights) -> State:
        return (writer.apply(activation, _gates(writer, inputs, before[0] if before else None, weights)),)

    return cell


_CELLS: Mapping[OpOverload, Cell] = {
    _aten.lstm.input: _lstm,
    _aten.gru.input: _gru,
    _aten.rnn_tanh.input: _plain(_aten.tanh.default),
    _aten.rnn_relu.input: _plain(_aten.relu.default),
}

RECURRENT = frozenset(_CELLS)
"""Layers that are unrolled where they start from zeros, with the batch first, and with dropout on a CPU alone."""

_STEPS: Mapping[OpOverload, Cell] = {
    _aten.lstm_cell.default: _lstm,
    _aten.gru_cell.default: _gru,
    _aten.rnn_tanh_cell.default: _plain(_aten.tanh.default),
    _aten.rnn_relu_cell.default: _plain(_aten.relu.default),
}
"""Single steps, from any state."""


def unrolled(graph: Graph, *, on_cpu: bool = True) -> Graph:
    """Replace recurrent layers by the calls of each time step; layers with other settings are left as they are.

    Args:
        graph: as it was recorded.
        on_cpu: whether the training runs on a CPU, which draws dropout between layers like any other.
    """
    if not any(call.op in RECURRENT or call.op in _STEPS for call in graph.calls):
        return graph
    calls: list[Call] = []
    shapes, types = dict(graph.shapes), dict(graph.types)
    results: dict[object, tuple[Reference, list[list[Reference]]]] = {}
    steps: dict[object, State] = {}
    renamed: dict[str, Reference] = {}
    for captured in graph.calls:
        call = _renamed(captured, renamed)
        layer = tuple(sorted((key, repr(value)) for key, value in call.arguments.items() if key != ITEM))
        if call.op in _STEPS:
            if layer not in steps:
                writer = _Writer(call, shapes)
                steps[layer] = _step(graph, writer)
                calls += writer.calls
                types |= {made.name: call.dtype for made in writer.calls}
            item = call.arguments.get(ITEM, 0)
            assert isinstance(item, int)
            renamed[call.name] = steps[layer][item]
            continue
        if call.op in RECURRENT and _covered(graph, captured, on_cpu=on_cpu):
            if layer not in results:
                writer = _Writer(call, shapes)
                results[layer] = _layers(writer)
                calls += writer.calls
                types |= {made.name: call.dtype for made in writer.calls}
            output, states = results[layer]
            item = call.arguments[ITEM]
            if item == 0:
                renamed[call.name] = output
            else:
                assert isinstance(item, int)
                calls.append(_of_layers(call, [state[item - 1] for state in states]))
            continue
        calls.append(call)
    result = renamed.get(graph.output, Reference(graph.output))
    return replace(graph, calls=tuple(_last_states(calls)), shapes=shapes, types=types, output=result.name)


def _layers(writer: _Writer) -> tuple[Reference, list[list[Reference]]]:
    """Write all layers; return the output sequence and the last state of each layer and direction."""
    arguments = writer.layer.arguments
    value, parameters = arguments["input"], arguments["params"]
    assert isinstance(value, Reference)
    assert isinstance(parameters, list)
    each = 4 if arguments["has_biases"] else 2
    directions = 2 if arguments["bidirectional"] else 1
    states: list[list[Reference]] = []
    for start in range(0, len(parameters), each * directions):
        outputs = []
        for direction in range(directions):
            own = parameters[start + direction * each : start + (direction + 1) * each]
            weights = _Weights(*own, *[None] * (4 - each))
            sequence, last = _direction(writer, value, weights, backwards=direction == 1)
            outputs.append(sequence)
            states.append(list(last))
        value = writer.joined(outputs)
        if start + each * directions < len(parameters):
            value = writer.dropped(value)
    return value, states


def _step(graph: Graph, writer: _Writer) -> State:
    """Write one step of a cell; return the state after it."""
    arguments = writer.layer.arguments
    value, states = arguments["input"], arguments["hx"]
    assert isinstance(value, Reference)
    before = tuple(states) if isinstance(states, list) else (states,)
    weights = _Weights(*(arguments[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")))  # type: ignore[arg-type]
    product = writer.product(value, weights.inputs, weights.inputs_bias, writer.shape(weights.state)[1] + 4)
    start = None if all(_is_zero(graph, state) for state in before) else before
    return _STEPS[writer.layer.op](writer, product, start, weights)


def _direction(writer: _Writer, value: Reference, weights: _Weights, *, backwards: bool) -> tuple[Reference, State]:
    cell, steps = _CELLS[writer.layer.op], writer.shape(value)[1]
    products = writer.product(value, weights.inputs, weights.inputs_bias, writer.shape(weights.state)[1] + 4)
    state: State | None = None
    outputs: list[Reference] = []
    for time in reversed(range(steps)) if backwards else range(steps):
        state = cell(writer, writer.at(products, time), state, weights)
        outputs.append(state[0])
    assert state is not None
    return writer.stacked(outputs[::-1] if backwards else outputs), state


def _of_layers(call: Call, states: Sequence[Reference]) -> Call:
    """Return the call that puts the last states of all layers behind each other, along the first axis."""
    return replace(call, op=_aten.stack.default, arguments={"tensors": list(states), "dim": 0})


def _last_states(calls: Sequence[Call]) -> list[Call]:
    """Read one layer of stacked states directly, so that the samples stay first."""
    stacks = {call.name: call for call in calls if call.op is _aten.stack.default and call.arguments["dim"] == 0}
    renamed: dict[str, Reference] = {}
    result = []
    for call in calls:
        state = _chosen(call, stacks)
        if state is not None:
            renamed[call.name] = state
            continue
        result.append(_renamed(call, renamed))
    return result


def _chosen(call: Call, stacks: Mapping[str, Call]) -> Reference | None:
    """Return the layer's state that a call takes out of a stack; None for other calls."""
    source = call.arguments.get("self")
    if not isinstance(source, Reference) or source.name not in stacks:
        return None
    states = stacks[source.name].arguments["tensors"]
    assert isinstance(states, list)
    if call.op is _aten.select.int and call.arguments["dim"] == 0:
        index = call.arguments["index"]
        return states[index] if isinstance(index, int) else None
    squeezed = call.op is _aten.squeeze.dim and call.arguments["dim"] == 0
    return states[0] if squeezed and len(states) == 1 else None


def _renamed(call: Call, renamed: Mapping[str, Reference]) -> Call:
    if not renamed.keys() & set(call.inputs):
        return call
    arguments = {
        key: map_references(value, lambda reference: renamed.get(reference.name, reference))
        for key, value in call.arguments.items()
    }
    return replace(call, arguments=arguments)


def _covered(graph: Graph, call: Call, *, on_cpu: bool) -> bool:
    """Return whether a layer starts from zeros, has the batch first, dropout on a CPU alone, and no projections."""
    arguments = call.arguments
    parameters, layers = arguments["params"], arguments["num_layers"]
    assert isinstance(parameters, list)
    assert isinstance(layers, int)
    expected = layers * (2 if arguments["bidirectional"] else 1) * (4 if arguments["has_biases"] else 2)
    active = arguments["dropout"] and arguments["train"] and layers > 1
    states = arguments["hx"] if isinstance(arguments["hx"], list) else [arguments["hx"]]
    return (
        bool(arguments["batch_first"])
        and len(parameters) == expected
        and (on_cpu or not active)
        and len(graph.shapes[call.inputs[0]]) == 3
        and all(_is_zero(graph, state) for state in states)
    )


def _is_zero(graph: Graph, state: object) -> bool:
    producer = graph.producer(state.name) if isinstance(state, Reference) else None
    while producer is not None and producer.op in _CASTS:
        producer = graph.producer(producer.inputs[0])
    filled = producer is not None and producer.op is _aten.full.default and producer.arguments["fill_value"] == 0
    return filled or producer is not None and producer.op in _ZEROS
