"""Capture a computation with `torch.export` and bring it to normal form."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from agt_lightning.capture.graph import Call, Graph, Reference
from agt_lightning.errors import CaptureError

_aten = torch.ops.aten

IDENTITIES = frozenset(
    {
        _aten.alias.default,
        _aten.clone.default,
        _aten.contiguous.default,
        _aten.detach_.default,
        _aten.lift_fresh_copy.default,
    }
)
"""Calls that return their first argument; they leave the graph. `detach` stays, since it stops gradients."""


class _Objective(nn.Module):
    """A function of tensors as a module, so that `torch.export` finds the parameters of ``module``."""

    def __init__(self, module: nn.Module, function: Callable[[Sequence[Tensor]], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, *leaves: Tensor) -> Tensor:
        return self.function(leaves)


def capture(module: nn.Module, function: Callable[[Sequence[Tensor]], Tensor], leaves: Sequence[Tensor]) -> Graph:
    """Record the calls that ``function`` makes on tensors like ``leaves``.

    Args:
        module: owner of the parameters and buffers; names in the graph are its own.
        function: maps batch tensors to one tensor; it may use ``module``.
        leaves: example tensors. Their shapes are fixed in the graph, their values are not looked at.

    Returns:
        The graph of the result, without calls that do not reach it.

    Raises:
        CaptureError: if the code cannot be recorded; the message holds the reason and the line.
    """
    try:
        program = torch.export.export(_Objective(module, function), tuple(leaves), strict=False)
        if any(_mutates(node) for node in program.graph.nodes):
            program = program.run_decompositions({})  # turns in-place calls into functional ones
    except Exception as error:
        raise CaptureError(
            f"Expected code that torch.export can record, but got: {_first_lines(error)}\nRemove that call, or mix in "
            "`CertifiedModule` and write `certified_objective(batch)`, which returns the same loss without it."
        ) from error
    return _live(_reduced(_fused(_graph(program))))


def _mutates(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, OpOverload) and target._schema.is_mutable and target not in IDENTITIES


def _first_lines(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + "\n    ".join(lines[:6])


def _graph(program: torch.export.ExportedProgram) -> Graph:
    signature = program.graph_signature
    state = {**program.state_dict, **program.constants}
    strip = len("module.")
    constants = {name: state[target] for name, target in signature.inputs_to_lifted_tensor_constants.items()}
    parameters = {name: target[strip:] for name, target in signature.inputs_to_parameters.items()}
    buffers = {name: target[strip:] for name, target in signature.inputs_to_buffers.items()}
    leaves = {str(name): position for position, name in enumerate(signature.user_inputs)}
    reader = _Reader()
    for node in program.graph.nodes:
        reader.read(node)
    output = next(str(spec.arg.name) for spec in signature.output_specs if spec.kind.name == "USER_OUTPUT")
    return Graph(
        calls=tuple(reader.calls),
        parameters=parameters,
        buffers=buffers,
        constants=constants,
        leaves=leaves,
        shapes=reader.shapes,
        output=reader.alias.get(output, output),
    )


class _Reader:
    """Translates one fx graph, node by node."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.alias: dict[str, str] = {}

    def read(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            self.shapes[node.name] = tuple(int(size) for size in value.shape)
        if node.op == "call_function" and node.target is operator.getitem:
            self._read_item(node)
        elif node.op == "call_function" and isinstance(node.target, OpOverload) and isinstance(value, Tensor):
            self._read_call(node, node.target, value)

    def _read_item(self, node: fx.Node) -> None:
        """`broadcast_tensors` that changes no shape is how losses and ``where`` arrive; its items are its inputs."""
        producer, index = node.args
        assert isinstance(producer, fx.Node)
        if producer.target is _aten.broadcast_tensors.default:
            source = producer.args[0][index]  # type: ignore[index]
            assert isinstance(source, fx.Node)
            name = self._name(source)
            if self.shapes[name] == self.shapes[node.name]:
                self.alias[node.name] = name
            else:
                self._append(node, _aten.expand.default, {"self": Reference(name)})
            return
        self._append(node, producer.target, {"self": Reference(self._name(producer))})  # type: ignore[arg-type]

    def _read_call(self, node: fx.Node, op: OpOverload, value: Tensor) -> None:
        arguments = self._arguments(node, op)
        first = next(iter(arguments.values()), None)
        if op in IDENTITIES and isinstance(first, Reference):
            self.alias[node.name] = first.name
        else:
            self._append(node, op, arguments)

    def _arguments(self, node: fx.Node, op: OpOverload) -> dict[str, object]:
        given = dict(zip((argument.name for argument in op._schema.arguments), node.args, strict=False))
        given.update(node.kwargs)
        return {
            argument.name: self._translate(given.get(argument.name, argument.default_value))
            for argument in op._schema.arguments
        }

    def _translate(self, argument: object) -> object:
        if isinstance(argument, fx.Node):
            return Reference(self._name(argument))
        if isinstance(argument, list | tuple):
            return [self._translate(item) for item in argument]
        return argument

    def _name(self, node: fx.Node) -> str:
        return self.alias.get(node.name, node.name)

    def _append(self, node: fx.Node, op: OpOverload, arguments: Mapping[str, object]) -> None:
        value = node.meta["val"]
        self.calls.append(
            Call(node.name, op, dict(arguments), tuple(int(s) for s in value.shape), value.dtype, _source(node))
        )


def _source(node: fx.Node) -> str:
    """Last line of the recorded stack that is not inside torch: ``file.py:12 `code` ``."""
    lines = str(node.meta.get("stack_trace") or "").splitlines()
    frames = [
        (line.strip(), lines[number + 1].strip())
        for number, line in enumerate(lines[:-1])
        if line.strip().startswith("File ") and "/torch/" not in line and "/agt_lightning/" not in line
    ]
    if not frames:
        return "unknown line"
    place, code = frames[-1]
    file, line, *_ = place.removeprefix("File ").split(", ")
    return f"{file.strip(chr(34)).rsplit('/', 1)[-1]}:{line.removeprefix('line ')} `{code}`"


def _fused(graph: Graph) -> Graph:
    """Join calls whose bounds are exact as one rule and loose, or unknown, as two.

    ``nll_loss(log_softmax(z))`` and ``binary_cross_entropy(sigmoid(z))`` have the gradient p - y; ``z @ W.T`` is a
    linear layer.
    """
    producers = {call.name: call for call in graph.calls}
    return replace(graph, calls=tuple(_fused_call(call, producers) for call in graph.calls))


def _fused_call(call: Call, producers: Mapping[str, Call]) -> Call:
    inner = producers.get(call.inputs[0]) if call.inputs else None
    if inner is None:
        return _fused_linear(call, producers)
    arguments = dict(call.arguments)
    logits = Reference(inner.inputs[0]) if inner.inputs else None
    if call.op is _aten.nll_loss_nd.default and inner.op is _aten.log_softmax.int and _over_classes(inner):
        arguments |= {"self": logits, "label_smoothing": 0.0}
        return replace(call, op=_aten.cross_entropy_loss.default, arguments=arguments)
    if call.op is _aten.binary_cross_entropy.default and inner.op is _aten.sigmoid.default:
        arguments |= {"self": logits, "pos_weight": None}
        return replace(call, op=_aten.binary_cross_entropy_with_logits.default, arguments=arguments)
    return _fused_linear(call, producers)


def _fused_linear(call: Call, producers: Mapping[str, Call]) -> Call:
    bias = call.arguments["self"] if call.op is _aten.addmm.default else None
    if call.op not in _PRODUCTS or bias is not None and (call.arguments["alpha"] != 1 or call.arguments["beta"] != 1):
        return call
    data, weight = call.inputs[-2:]
    transpose = producers.get(weight)
    if transpose is None or transpose.op not in _TRANSPOSES or len(transpose.shape) != 2:
        return call
    arguments = {"input": Reference(data), "weight": Reference(transpose.inputs[0]), "bias": bias}
    return replace(call, op=_aten.linear.default, arguments=arguments)


_PRODUCTS = frozenset({_aten.matmul.default, _aten.mm.default, _aten.addmm.default})
_TRANSPOSES = frozenset(
    {_aten.t.default, _aten.numpy_T.default, _aten.mT.default, _aten.transpose.int, _aten.permute.default}
)


LOSSES = frozenset(
    {
        _aten.binary_cross_entropy_with_logits.default,
        _aten.cross_entropy_loss.default,
        _aten.huber_loss.default,
        _aten.l1_loss.default,
        _aten.mse_loss.default,
        _aten.smooth_l1_loss.default,
    }
)
"""Calls that reduce over the batch by an argument ``reduction`` (0 none, 1 mean, 2 sum)."""


def _reduced(graph: Graph) -> Graph:
    """Write a loss with a reduction as the per-sample loss and a reduction of its own."""
    calls: list[Call] = []
    shapes = dict(graph.shapes)
    for call in graph.calls:
        reduction = call.arguments.get("reduction")
        if call.op not in LOSSES or reduction == 0:
            calls.append(call)
            continue
        logits = shapes[call.inputs[0]]
        classes = call.op is _aten.cross_entropy_loss.default
        name = f"{call.name}_per_sample"
        shapes[name] = logits[:1] + logits[2:] if classes else logits
        calls.append(replace(call, name=name, shape=shapes[name], arguments={**call.arguments, "reduction": 0}))
        op = _aten.mean.default if reduction == 1 else _aten.sum.default
        calls.append(replace(call, op=op, arguments={"self": Reference(name), "dtype": None}))
    return replace(graph, calls=tuple(calls), shapes=shapes)


def _over_classes(log_softmax: Call) -> bool:
    """Whether the softmax runs over axis 1, where `nll_loss` has its classes."""
    dim = log_softmax.arguments["dim"]
    return isinstance(dim, int) and dim % len(log_softmax.shape) == 1


def _live(graph: Graph) -> Graph:
    """Drop calls that do not reach the result: what `self.log` and metrics computed."""
    needed = {graph.output}
    calls: list[Call] = []
    for call in reversed(graph.calls):
        if call.name in needed:
            needed.update(call.inputs)
            calls.append(call)
    return replace(
        graph,
        calls=tuple(reversed(calls)),
        parameters={name: target for name, target in graph.parameters.items() if name in needed},
        buffers={name: target for name, target in graph.buffers.items() if name in needed},
        constants={name: value for name, value in graph.constants.items() if name in needed},
        leaves={name: position for name, position in graph.leaves.items() if name in needed},
    )
