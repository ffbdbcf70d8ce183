"""Numbers that are read at places which labels or indices of the batch name, in a normal form.

Rows of a parameter, `self.users[ids]`, are those of an embedding. One number of each row, `x.gather(1, y[:, None])`,
and the weight of each label's class are products with the label as a unit vector, of which the others add zeros. A
parameter that is expanded like another is expanded to that shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch._ops import OpOverload

from agt_lightning.capture.graph import NONE_LEFT_OUT, Call, Graph, Reference
from agt_lightning.capture.reached import reached
from agt_lightning.capture.totals import OVER_TOTAL

_aten = torch.ops.aten


class _Writer:
    """Writes calls in place of one, the last of which has its name."""

    def __init__(self, call: Call, shapes: dict[str, tuple[int, ...]], types: dict[str, torch.dtype]) -> None:
        self.call = call
        self.shapes = shapes
        self.types = types
        self.calls: list[Call] = []

    def write(
        self, op: OpOverload, arguments: Mapping[str, object], shape: Sequence[int], kind: torch.dtype, name: str = ""
    ) -> Reference:
        name = name or f"{self.call.name}.{len(self.calls)}"
        complete = {each.name: arguments.get(each.name, each.default_value) for each in op._schema.arguments}
        self.calls.append(replace(self.call, name=name, op=op, arguments=complete, shape=tuple(shape), dtype=kind))
        self.shapes[name], self.types[name] = tuple(shape), kind
        return Reference(name)

    def units(self, classes: Reference, count: int) -> Reference:
        """Labels as unit vectors; labels out of range, which a loss leaves out, as any."""
        shape, kind = self.shapes[classes.name], self.types[classes.name]
        inside = self.write(_aten.clamp.default, {"self": classes, "min": 0, "max": count - 1}, shape, kind)
        return self.write(_aten.one_hot.default, {"self": inside, "num_classes": count}, (*shape, count), torch.int64)


def lookups(graph: Graph) -> Graph:
    """Write lookups in their normal form.

    Args:
        graph: with losses as they were recorded.
    """
    calls: list[Call] = []
    shapes, types = dict(graph.shapes), dict(graph.types)
    depending = reached(graph, {*graph.leaves, *graph.masks})
    for call in graph.calls:
        types.setdefault(call.name, call.dtype)
        writer = _Writer(call, shapes, types)
        if call.op is _aten.expand_as.default and not depending.intersection(call.inputs):
            size = {"self": Reference(call.inputs[0]), "size": list(call.shape)}
            writer.write(_aten.expand.default, size, call.shape, call.dtype, call.name)
        elif _reads_rows(graph, call, types):
            _rows(writer)
        elif _reads_one(call, shapes):
            _one_of_row(writer)
        elif _is_weighed(call, shapes, types):
            _weighed(writer)
        calls += writer.calls or [call]
    return replace(graph, calls=tuple(calls), shapes=shapes, types=types)


def _reads_rows(graph: Graph, call: Call, types: Mapping[str, torch.dtype]) -> bool:
    """Return whether a call is `parameter[integers]` on a table."""
    if call.op is not _aten.index.Tensor or len(call.inputs) != 2:
        return False
    table, indices = call.inputs
    integers = types[indices] in (torch.int64, torch.int32)
    one = isinstance(call.arguments["indices"], list) and len(call.arguments["indices"]) == 1
    return integers and one and table in graph.parameters and len(graph.shapes[table]) == 2


def _rows(writer: _Writer) -> None:
    table, indices = (Reference(name) for name in writer.call.inputs)
    count, shape = writer.shapes[table.name][0], writer.shapes[indices.name]
    wrapped = {"self": indices, "other": count}  # -1 is the last row
    rows = writer.write(_aten.remainder.Scalar, wrapped, shape, writer.types[indices.name])
    arguments = {"weight": table, "indices": rows}
    writer.write(_aten.embedding.default, arguments, writer.call.shape, writer.call.dtype, writer.call.name)


def _reads_one(call: Call, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether a call is `x.gather(1, labels[:, None])` on rows."""
    if call.op is not _aten.gather.default or len(call.shape) != 2:
        return False
    values, _ = call.inputs
    return call.arguments["dim"] in (1, -1) and call.shape == (shapes[values][0], 1)


def _one_of_row(writer: _Writer) -> None:
    values, indices = (Reference(name) for name in writer.call.inputs)
    (samples, count), kind = writer.shapes[values.name], writer.call.dtype
    squeezed = {"self": indices, "dim": 1}
    labels = writer.write(_aten.squeeze.dim, squeezed, (samples,), writer.types[indices.name])
    units = writer.units(labels, count)
    product = writer.write(_aten.mul.Tensor, {"self": values, "other": units}, (samples, count), kind)
    total = {"self": product, "dim": [1], "keepdim": True}
    writer.write(_aten.sum.dim_IntList, total, (samples, 1), kind, writer.call.name)


def _is_weighed(call: Call, shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, torch.dtype]) -> bool:
    """Return whether a call weighs the loss of each sample by its class."""
    if call.op is not _aten.cross_entropy_loss.default or call.arguments["weight"] is None:
        return False
    arguments = call.arguments
    logits, labels = call.inputs[:2]
    classes = len(shapes[labels]) == 1 and len(shapes[logits]) == 2 and not types[labels].is_floating_point
    return classes and arguments["label_smoothing"] == 0.0


def _weighed(writer: _Writer) -> None:
    call = writer.call
    logits, labels, weight = (Reference(name) for name in call.inputs)
    samples, count = writer.shapes[logits.name]
    arguments = {**call.arguments, "weight": None, "reduction": 0}
    loss = writer.write(call.op, arguments, (samples,), call.dtype)
    units = {"self": writer.units(labels, count), "other": weight}
    product = writer.write(_aten.mul.Tensor, units, (samples, count), call.dtype)
    own = writer.write(_aten.sum.dim_IntList, {"self": product, "dim": [1]}, (samples,), call.dtype)
    reduction = call.arguments["reduction"]
    name = call.name if reduction == 0 else ""
    weighed = writer.write(_aten.mul.Tensor, {"self": loss, "other": own}, (samples,), call.dtype, name)
    if reduction == 1:  # a label that is left out would have to be left out of the total, too
        writer.calls[0] = replace(writer.calls[0], arguments={**writer.calls[0].arguments, NONE_LEFT_OUT: True})
        shares = {"value": weighed, "weights": own}
        weighed = writer.write(OVER_TOTAL, shares, (samples,), call.dtype)
    if reduction:
        writer.write(_aten.sum.default, {"self": weighed}, (), call.dtype, call.name)
