"""Blocks of code under `torch.no_grad` in an exported program, before it is decomposed.

Decomposition turns calls in place into calls that make new values, and forgets gradient modes. So what a block returns
is detached before. A value with a gradient that is changed in place under `torch.no_grad`, or through a detached view
of it, keeps in training the gradient that it had, which no call on new values has: that is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.node import Argument

from agt_lightning.capture.source import source_of
from agt_lightning.errors import CaptureError

_aten = torch.ops.aten

_DETACHING = frozenset({_aten.detach.default, _aten.detach_.default})


def stops_gradients(node: fx.Node) -> bool:
    """Return whether a node is a block of code under `torch.no_grad`."""
    return getattr(node.target, "__name__", "") == "wrap_with_set_grad_enabled" and node.args[0] is False


def keep_gradient_modes(program: torch.export.ExportedProgram) -> None:
    """Detach what blocks under `torch.no_grad` return, in place.

    Args:
        program: as it was exported.

    Raises:
        CaptureError: if a value with a gradient is changed in place where autograd does not see it.
    """
    aliases = _Aliases(program)
    for node in program.graph.nodes:
        aliases.require_seen(node, seen=True)
        if stops_gradients(node):
            block = aliases.block(node)
            for inner in block.graph.nodes:
                aliases.require_seen(inner, seen=False)
            _detach_results(block)


def inline_blocks(program: torch.export.ExportedProgram) -> None:
    """Put the calls of blocks under `torch.no_grad` in their places, in place.

    Decomposition does so too, but forgets in which submodules they were made. Call `keep_gradient_modes` before.

    Args:
        program: as it was exported.
    """
    graph = program.graph
    for node in filter(stops_gradients, list(graph.nodes)):
        inner, *operands = node.args[1:]
        block = getattr(program.graph_module, str(inner.target))
        if not any(call.op == "get_attr" for call in block.graph.nodes):  # it has no block of its own
            with graph.inserting_before(node):
                results = _copied(graph, block.graph, operands)
            for item in list(node.users):
                item.replace_all_uses_with(results[item.args[1]])
                graph.erase_node(item)
            graph.erase_node(node)
    program.graph_module.recompile()


def _copied(graph: fx.Graph, block: fx.Graph, operands: Sequence[fx.Node]) -> list[Argument]:
    """Copy the calls of a block where nodes are inserted into a graph, and return its results."""
    copies = dict(zip(block.find_nodes(op="placeholder"), operands, strict=True))
    for call in block.nodes:
        if call.op not in {"placeholder", "output"}:
            copies[call] = graph.node_copy(call, copies.__getitem__)
    results = block.output_node().args[0]
    assert isinstance(results, list | tuple)
    return [copies[result] if isinstance(result, fx.Node) else result for result in results]


def _detach_results(block: fx.GraphModule) -> None:
    output = block.graph.output_node()
    results = output.args[0]
    assert isinstance(results, list | tuple)
    with block.graph.inserting_before(output):
        detached = [_detached(block.graph, result) for result in results]
    output.args = (tuple(detached),)
    block.recompile()


def _detached(graph: fx.Graph, result: Argument) -> Argument:
    if not isinstance(result, fx.Node) or not isinstance(result.meta.get("val"), Tensor):
        return result
    detached = graph.call_function(_aten.detach.default, (result,))
    detached.meta = dict(result.meta)
    return detached


class _Aliases:
    """The values that share memory in an exported program, and those of them with a gradient.

    Args:
        program: as it was exported.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.module = program.graph_module
        targets = program.graph_signature.inputs_to_parameters
        trained = {name for name, target in targets.items() if program.state_dict[target].requires_grad}
        self.attached: set[fx.Node] = set()
        self.outside: dict[fx.Node, fx.Node] = {}
        for node in program.graph.nodes:
            if stops_gradients(node):
                inputs = self.block(node).graph.find_nodes(op="placeholder")
                self.outside |= dict(zip(inputs, node.args[2:], strict=True))
            elif node.name in trained or self.attached.intersection(node.all_input_nodes):
                self.attached |= set() if node.target in _DETACHING else {node}

    def block(self, node: fx.Node) -> fx.GraphModule:
        """Return the code of a block."""
        inner = node.args[1]
        assert isinstance(inner, fx.Node)
        block = getattr(self.module, str(inner.target))
        assert isinstance(block, fx.GraphModule)
        return block

    def require_seen(self, node: fx.Node, *, seen: bool) -> None:
        """Require that autograd sees a call in place, or that nothing else reads what it changes.

        Args:
            node: any call.
            seen: whether it stands outside of all blocks.

        Raises:
            CaptureError: otherwise.
        """
        for changed in _changed(node):
            visible, reader = seen, node
            for value in self._of(changed):
                if value.op != "placeholder" and value in self.attached:  # of parameters, training says more
                    if visible:
                        break
                    if set(value.users) != {reader}:
                        raise CaptureError(_unseen(node))
                visible, reader = visible and value.target not in _DETACHING, value

    def _of(self, value: fx.Node | None) -> Iterator[fx.Node]:
        """Yield a value and those that it is a view of, from block to block."""
        while value is not None:
            yield value
            value = self.outside[value] if value in self.outside else self._base(value)

    def _base(self, value: fx.Node) -> fx.Node | None:
        first = value.args[0] if value.args else None
        if not isinstance(first, fx.Node):
            return None
        if value.target is operator.getitem:
            return self._result(first, value.args[1]) if stops_gradients(first) else first
        returns = value.target._schema.returns if isinstance(value.target, OpOverload) else []
        return first if any(each.alias_info is not None for each in returns) else None

    def _result(self, block: fx.Node, number: object) -> fx.Node | None:
        results = self.block(block).graph.output_node().args[0]
        assert isinstance(results, list | tuple)
        assert isinstance(number, int)
        result = results[number]
        return result if isinstance(result, fx.Node) else None


def _changed(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the values that a call changes in place."""
    if not isinstance(node.target, OpOverload) or node.target in _DETACHING:
        return
    given = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False))
    given.update(node.kwargs)
    for argument in node.target._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = given.get(argument.name)
            yield from (
                each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, fx.Node)
            )


def _unseen(node: fx.Node) -> str:
    return (
        f"{source_of(node.meta.get('stack_trace'))} changes a value in place where autograd does not see it: under "
        "`torch.no_grad`, or through `detach`. Its gradient is then that of the numbers before. Make a new value, as "
        "`y = x + (x.clamp(min=1) - x).detach()` does."
    )
