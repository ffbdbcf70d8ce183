"""Translation of the nodes of an exported program to calls."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload

from agt_lightning.capture.graph import ITEM, STRIDED, Call, Reference
from agt_lightning.capture.source import source_of
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
"""Calls that return their first argument; they are dropped. `detach` is kept, since it stops gradients."""


_FILLED = {
    _aten.new_zeros.default: 0.0,
    _aten.zeros_like.default: 0.0,
    _aten.new_ones.default: 1.0,
    _aten.ones_like.default: 1.0,
}
"""Calls that take shape and type of a tensor, not its numbers, and the number that they fill a new one with."""


class GraphReader:
    """A translator of one fx graph, node by node, which inlines nested regions of `torch.no_grad`.

    Args:
        module: the graph and its regions.
        calls: list to which calls are appended; None for a new one.
        shapes: mapping to which shapes of values are added; None for a new one.
        types: mapping to which their types are added; None for a new one.
        prefix: prefix of the names of this graph's values.
        called: set to which paths of submodules are added whose `forward` made a call; None for a new one.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        calls: list[Call] | None = None,
        shapes: dict[str, tuple[int, ...]] | None = None,
        types: dict[str, torch.dtype] | None = None,
        prefix: str = "",
        called: set[str] | None = None,
    ) -> None:
        self.module = module
        self.calls: list[Call] = [] if calls is None else calls
        self.shapes: dict[str, tuple[int, ...]] = {} if shapes is None else shapes
        self.types: dict[str, torch.dtype] = {} if types is None else types
        self.prefix = prefix
        self.called: set[str] = set() if called is None else called
        self.names: dict[fx.Node, str] = {}
        self.regions: dict[fx.Node, list[str]] = {}

    def read(self, inputs: Sequence[str] | None = None) -> list[str]:
        """Translate all nodes.

        Args:
            inputs: names of the input values of the graph; None to name them as the graph does.

        Returns:
            Names of the results.
        """
        given = iter(inputs or ())
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.names[node] = node.name if inputs is None else next(given)
                self._note_shape(node)
            elif node.op == "call_function":
                self._read_call(node)
        output = next(node for node in self.module.graph.nodes if node.op == "output")
        results = output.args[0]
        assert isinstance(results, list | tuple)
        return [self._name(node) for node in results if isinstance(node, fx.Node)]

    def _read_call(self, node: fx.Node) -> None:
        if isinstance(node.target, HigherOrderOperator):
            self._read_region(node, node.target)
        elif node.target is operator.getitem:
            self._read_item(node)
        elif isinstance(node.target, OpOverload) and _has_fixed_shape(node.meta.get("val")):
            arguments = self._arguments(node, node.target)
            first = next(iter(arguments.values()), None)
            if node.target in IDENTITIES and isinstance(first, Reference):
                self.names[node] = first.name
            elif node.target is _aten.copy.default and _same_kind(node):
                source = arguments["src"]
                assert isinstance(source, Reference)
                self.names[node] = source.name  # what was there before is overwritten
            elif node.target in _FILLED:
                self._append(node, _aten.full.default, _filled(node.meta["val"], _FILLED[node.target]))
            else:
                self._append(node, node.target, arguments)

    def _read_region(self, node: fx.Node, op: HigherOrderOperator) -> None:
        """Translate a block of code under a context manager; results of `torch.no_grad` have no gradient."""
        name = op.__name__
        if name == "wrap_with_autocast" and node.args[2] is False:
            return self._inline(node, *node.args[4:])
        if name != "wrap_with_set_grad_enabled" or (node.args[0] and self.prefix):
            raise CaptureError(
                f"Expected code without `{name}`, which comes from automatic mixed precision, control flow or nested "
                "gradient modes, but `training_step` has it. Remove it."
            )
        enabled, *region = node.args
        self._inline(node, *region)
        if not enabled:
            self.regions[node] = [self._detached(result) for result in self.regions[node]]
        return None

    def _inline(self, node: fx.Node, region: object, *operands: object) -> None:
        """Translate the calls of a region as if they stood in its place."""
        assert isinstance(region, fx.Node)
        inner = getattr(self.module, str(region.target))
        reader = GraphReader(inner, self.calls, self.shapes, self.types, f"{self.prefix}{node.name}.", self.called)
        self.regions[node] = reader.read([self._name(operand) for operand in operands if isinstance(operand, fx.Node)])

    def _detached(self, name: str) -> str:
        """Append a call to `detach` on a value, and return the name of its result."""
        call = next((call for call in self.calls if call.name == name), None)
        if call is None:
            return name  # an input, through which no gradient flows in this region
        detached = f"{name}.detached"
        self.shapes[detached], self.types[detached] = call.shape, call.dtype
        arguments = {"self": Reference(name)}
        self.calls.append(replace(call, name=detached, op=_aten.detach.default, arguments=arguments))
        return detached

    def _read_item(self, node: fx.Node) -> None:
        """Translate one of several results; `broadcast_tensors` gives its inputs: elementwise rules broadcast."""
        producer, index = node.args
        assert isinstance(producer, fx.Node)
        assert isinstance(index, int)
        if producer in self.regions:
            self.names[node] = self.regions[producer][index]
            return
        assert isinstance(producer.target, OpOverload)
        arguments = self._arguments(producer, producer.target)
        if producer.target is _aten.broadcast_tensors.default:
            sources = arguments["tensors"]
            assert isinstance(sources, list)
            self.names[node] = sources[index].name
        elif _has_fixed_shape(node.meta.get("val")):
            self._append(node, producer.target, arguments | {ITEM: index})

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
        return self.names.get(node, f"{self.prefix}{node.name}")

    def _note_shape(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if _has_fixed_shape(value):
            self.shapes[self._name(node)] = tuple(int(size) for size in value.shape)
            self.types[self._name(node)] = value.dtype

    def _append(self, node: fx.Node, op: OpOverload, arguments: Mapping[str, object]) -> None:
        self._note_shape(node)
        name, source = self._name(node), source_of(node.meta.get("stack_trace"))
        dtype, modules = node.meta["val"].dtype, _modules_of(node)
        self.called.update(modules)
        value = node.meta["val"]
        drawn = torch.Tag.nondeterministic_seeded in op.tags and not value.is_contiguous()
        arguments = {**arguments, STRIDED: _order_in_memory(value)} if drawn else arguments
        self.calls.append(Call(name, op, dict(arguments), self.shapes[name], dtype, source, modules[-1]))


def _order_in_memory(value: Tensor) -> tuple[int, ...]:
    strides = value.stride()
    return tuple(sorted(range(value.ndim), key=lambda axis: -strides[axis]))


def _same_kind(copy: fx.Node) -> bool:
    """Return whether a copy has the shape and the type of its source."""
    source, result = copy.args[1], copy.meta["val"]
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    return isinstance(value, Tensor) and value.shape == result.shape and value.dtype == result.dtype


def _filled(like: Tensor, number: float) -> dict[str, object]:
    """Return the arguments of `full` for a tensor of one number."""
    arguments = {"size": list(like.shape), "fill_value": number, "dtype": like.dtype, "device": like.device}
    return {**arguments, "layout": None, "pin_memory": None}


def _has_fixed_shape(value: object) -> TypeGuard[Tensor]:
    """Return whether a value is a tensor whose shape does not depend on data; other values have no calls."""
    return isinstance(value, Tensor) and all(isinstance(size, int) for size in value.shape)


def _modules_of(node: fx.Node) -> list[str]:
    """Return the paths of the submodules inside of which a call was made, innermost last, as the module has them."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return [str(path).partition(".")[2] for path, _ in stack.values()]
