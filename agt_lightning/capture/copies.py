"""Values without samples that hold the same numbers for each sample, such as a class token `expand`-ed to the batch.

Where such a value meets samples, one copy of it is enough: a row of shape (1, ...), which is shared by all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch

from agt_lightning.capture.graph import Call, Reference
from agt_lightning.capture.layout import Layout
from agt_lightning.capture.moves import PERMUTATIONS, VIEWS, is_elementwise, order_of_axes
from agt_lightning.capture.rewriting import Rewriting, renamed

_aten = torch.ops.aten

_FILLS = frozenset(
    {
        _aten.full.default,
        _aten.new_full.default,
        _aten.new_ones.default,
        _aten.new_zeros.default,
        _aten.ones.default,
        _aten.zeros.default,
    }
)
"""Calls whose elements are all the same number."""


def aligned(rewriting: Rewriting, call: Call, layout: Layout, names: Iterable[str]) -> dict[str, str] | None:
    """Return the operands of a call that broadcasts them, such that its result has the samples first.

    Args:
        rewriting: to which reshaped operands are written.
        call: the call.
        layout: of its captured result.
        names: of the operands in the captured graph.

    Returns:
        New names by captured ones; None if samples would meet, or a shared operand differs between them.
    """
    operands = {name: _aligned(rewriting, call, layout, name) for name in names}
    known = {name: operand for name, operand in operands.items() if operand is not None}
    return known if len(known) == len(operands) else None


def _aligned(rewriting: Rewriting, call: Call, layout: Layout, name: str) -> str | None:
    missing = len(call.shape) - len(rewriting.shapes[name])
    shape = (1,) * missing + rewriting.shapes[name]
    own = layout.moved(layout.axis - missing)
    if not missing and rewriting.mask(name, own) is not None:  # also where another axis has as many elements
        return name
    if name in rewriting.on_samples:
        same = rewriting.layout(name) == own
        return rewriting.reshaped(call, rewriting.moved[name].name, layout.first(shape)) if same else None
    if shape[layout.axis] != 1:
        row = row_of(rewriting, name, own)
        return None if row is None else rewriting.reshaped(call, row, layout.first(shape, samples=1))
    target = (1, *[shape[axis] for axis in layout.order(len(shape))])
    in_place = _without_ones(target) == _without_ones(rewriting.shapes[name])
    return name if in_place else rewriting.reshaped(call, name, target)


def row_of(rewriting: Rewriting, name: str, layout: Layout) -> str | None:
    """Return what a value without samples is for each of them, of shape (1, ...).

    Args:
        rewriting: to which it is written.
        name: of the value.
        layout: where the value has a place for each sample.

    Returns:
        The name; None unless the value is the same for all samples.
    """
    producer, shape = rewriting.producers.get(name), rewriting.graph.shapes[name]
    sized = shape[layout.axis : layout.axis + 1] == (rewriting.samples * layout.folded,)
    if producer is None or not sized or torch.Tag.nondeterministic_seeded in producer.op.tags:
        return None
    return _row(rewriting, producer, layout)


def _row(rewriting: Rewriting, call: Call, layout: Layout) -> str | None:
    row, source = layout.first(call.shape, samples=1), call.inputs[0] if call.inputs else ""
    if call.op in _FILLS:
        return rewriting.write(call, call.op, {**call.arguments, "size": list(row)}, row)
    if call.op in (_aten.expand.default, _aten.repeat.default):
        return _row_of_copies(rewriting, call, layout)
    if call.op in VIEWS:
        own = layout.reshaped(call.shape, rewriting.shapes[source])
        known = None if own is None else row_of(rewriting, source, own)
        return None if known is None else rewriting.reshaped(call, known, row)
    if call.op in PERMUTATIONS:
        order = order_of_axes(call)
        own = layout.moved(order[layout.axis])
        known = row_of(rewriting, source, own)
        behind = [own.position(order[axis], len(order)) for axis in layout.order(len(order))]
        return None if known is None else rewriting.permuted(call, known, [0, *behind])
    if call.op is _aten.embedding.default:
        indices = call.inputs[1]
        known = row_of(rewriting, indices, layout)
        return None if known is None else rewriting.write(call, call.op, renamed(call, {indices: known}), row)
    operands = aligned(rewriting, call, layout, call.inputs) if is_elementwise(call) else None
    return None if operands is None else rewriting.write(call, call.op, renamed(call, operands), row)


def _row_of_copies(rewriting: Rewriting, call: Call, layout: Layout) -> str | None:
    """Return one copy, if the call makes a copy for each sample and nothing else along their axis."""
    source = call.inputs[0]
    shape = (1,) * (len(call.shape) - len(rewriting.shapes[source])) + rewriting.shapes[source]
    if layout.folded > 1 or shape[layout.axis] != 1:
        return None
    one = _with_one(call.shape, layout.axis)
    if math.prod(one) == math.prod(shape):
        return rewriting.reshaped(call, source, layout.first(call.shape, samples=1))
    repeats = call.arguments.get("repeats")
    times = {"repeats": _with_one(repeats, layout.axis)} if isinstance(repeats, list) else {"size": one}
    value = rewriting.write(call, call.op, {"self": Reference(source), **times}, one)
    return rewriting.reshaped(call, value, layout.first(call.shape, samples=1))


def _with_one(sizes: Sequence[int], axis: int) -> list[int]:
    """Return sizes with one in place of that of an axis."""
    return [1 if at == axis else size for at, size in enumerate(sizes)]


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without its leading ones."""
    return tuple(itertools.dropwhile(lambda size: size == 1, shape))
