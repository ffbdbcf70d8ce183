"""Values with their samples elsewhere than first, rewritten so that every call has them on axis 0.

Code folds the samples into another axis, ``(b, t, d)`` to ``(b t, d)``, or moves them, ``(t, b, d)``, and undoes it
later. Where each call in between acts on every sample alone, it is repeated on values with the samples first: changes
of shape and order become others, and calls on one axis act where that axis is then. The rewritten graph computes the
same numbers. Other calls are repeated as they are where their inputs have the samples first; elsewhere the captured
calls stay, and are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch._ops import OpOverload

from agt_lightning.capture.copies import aligned, row_of
from agt_lightning.capture.graph import Call, Graph, Reference
from agt_lightning.capture.layout import FIRST, Layout
from agt_lightning.capture.moves import PERMUTATIONS, VIEWS, is_elementwise, order_of_axes
from agt_lightning.capture.rewriting import Moved, Rewriting, renamed

_aten = torch.ops.aten

_ALONG_AXES = frozenset(
    {
        _aten.amax.default,
        _aten.amin.default,
        _aten.chunk.default,
        _aten.flip.default,
        _aten.glu.default,
        _aten.index_select.default,
        _aten.linalg_vector_norm.default,
        _aten.log_softmax.int,
        _aten.logsumexp.default,
        _aten.max.dim,
        _aten.mean.dim,
        _aten.min.dim,
        _aten.narrow.default,
        _aten.roll.default,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.softmax.int,
        _aten.split.Tensor,
        _aten.split_with_sizes.default,
        _aten.sum.dim_IntList,
        _aten.unbind.int,
        _aten.var.correction,
    }
)
"""Calls on one value that name the axes along which they act."""

_JOINS = frozenset({_aten.cat.default, _aten.concat.default, _aten.concatenate.default, _aten.stack.default})
_LOOKUPS = frozenset({_aten.embedding.default, _aten.one_hot.default})
_TOTALS = frozenset({_aten.mean.default, _aten.sum.default})
_LAST_AXES = frozenset({_aten.layer_norm.default, _aten.constant_pad_nd.default, _aten.pad.default})


Follow = Callable[[Rewriting, Call], Moved | None]
"""Writes a call anew on values with their samples first; None if it cannot be followed."""


def samples_first(graph: Graph) -> Graph:
    """Rewrite the calls on values with samples elsewhere than first; a graph without such values is returned as it is.

    Args:
        graph: captured on at least two samples; on one, their axis is not known, and the graph is returned as it is.

    Returns:
        The graph with captured and rewritten calls, of which some are not read any more.
    """
    sizes = Counter(graph.shapes[leaf][0] for leaf in graph.leaves if graph.shapes[leaf])
    samples = sizes.most_common(1)[0][0] if sizes else 0
    if samples < 2:
        return graph
    rewriting = Rewriting(graph, samples)
    for call in graph.calls:
        rewriting.calls.append(call)
        moved = _followed(rewriting, call) if call.name in rewriting.on_samples else None
        if moved is not None:
            rewriting.moved[call.name] = moved
    return rewriting.result() if len(rewriting.calls) > len(graph.calls) else graph


def _followed(rewriting: Rewriting, call: Call) -> Moved | None:
    """Return the value of a call with its samples first."""
    names = [name for name in call.inputs if name in rewriting.on_samples]
    operands = {name: rewriting.moved[name] for name in names if name in rewriting.moved}
    if len(operands) < len(set(names)):
        return None
    if any(operand.layout is None for operand in operands.values()):
        return _on_totals(rewriting, call, operands)
    written = len(rewriting.calls)
    moved = _rewritten(rewriting, call)
    untouched = all(operand == Moved(name, FIRST) for name, operand in operands.items())
    if moved is None and not untouched:
        return _unfollowed(rewriting, call, operands)
    if not untouched or moved is not None and moved.layout not in (None, FIRST):
        return moved
    if moved is not None and len(rewriting.calls) > written and _has_copies(rewriting.calls[-1], call):
        return moved
    del rewriting.calls[written:]  # the rule of the captured call judges it
    if moved is not None:
        return Moved(call.name, moved.layout)
    return Moved(call.name, FIRST) if call.shape[:1] == (rewriting.samples,) else None


def _unfollowed(rewriting: Rewriting, call: Call, operands: Mapping[str, Moved]) -> Moved | None:
    """Repeat any call on values that have their samples first already: its rule judges it like a captured one."""
    if call.shape[:1] != (rewriting.samples,) or any(operand.layout != FIRST for operand in operands.values()):
        return None
    names = {name: operand.name for name, operand in operands.items()}
    return Moved(rewriting.write(call, call.op, renamed(call, names), call.shape), FIRST)


def _has_copies(written: Call, call: Call) -> bool:
    """Return whether a rewritten call reads one copy in place of one for each sample."""
    return set(written.inputs) != set(call.inputs)


def _rewritten(rewriting: Rewriting, call: Call) -> Moved | None:
    follow = _FOLLOW.get(call.op, _elementwise if is_elementwise(call) else None)
    return None if follow is None else follow(rewriting, call)


def _on_totals(rewriting: Rewriting, call: Call, operands: Mapping[str, Moved]) -> Moved | None:
    """Follow a call on values that no longer have samples, such as a sum of two losses."""
    if any(operand.layout is not None for operand in operands.values()):
        return None
    names = {name: operand.name for name, operand in operands.items()}
    if all(name == new for name, new in names.items()):
        return Moved(call.name, None)
    return Moved(rewriting.write(call, call.op, renamed(call, names), call.shape), None)


def _view(rewriting: Rewriting, call: Call) -> Moved | None:
    source = call.inputs[0]
    layout = rewriting.layout(source).reshaped(rewriting.shapes[source], call.shape)
    if layout is None:
        return None
    return Moved(rewriting.reshaped(call, rewriting.moved[source].name, layout.first(call.shape)), layout)


def _permutation(rewriting: Rewriting, call: Call) -> Moved | None:
    source = call.inputs[0]
    before, order = rewriting.layout(source), order_of_axes(call)
    layout = before.moved(order.index(before.axis))
    behind = [before.position(order[axis], len(order)) for axis in layout.order(len(order))]
    return Moved(rewriting.permuted(call, rewriting.moved[source].name, [0, *behind]), layout)


def _elementwise(rewriting: Rewriting, call: Call) -> Moved | None:
    own = next(name for name in call.inputs if name in rewriting.on_samples)
    before = rewriting.layout(own)
    layout = before.moved(before.axis + len(call.shape) - len(rewriting.shapes[own]))
    operands = aligned(rewriting, call, layout, call.inputs)
    return None if operands is None else rewriting.finished(call, layout, renamed(call, operands))


def _linear(rewriting: Rewriting, call: Call) -> Moved | None:
    """Follow a product with one weight for all samples, and a product of two values with samples."""
    left, *others = call.inputs
    if left in rewriting.on_samples and not rewriting.on_samples.intersection(others):
        layout, rank = rewriting.layout(left), len(rewriting.shapes[left])
        if layout.axis == rank - 1 or len(rewriting.shapes[others[0]]) != 2:
            return None
        return _finished_product(rewriting, call, layout, {left: rewriting.moved[left].name})
    return _product(rewriting, call) if rewriting.on_samples.issuperset(call.inputs) else None


def _finished_product(rewriting: Rewriting, call: Call, layout: Layout, names: Mapping[str, str]) -> Moved:
    """Write a product for any number of axes."""
    arguments = renamed(call, names)
    if call.op not in (_aten.mm.default, _aten.bmm.default):
        return rewriting.finished(call, layout, arguments)
    factors = {"self": arguments["self"], "other": arguments["mat2"]}
    return rewriting.finished(replace(call, op=_aten.matmul.default, arguments=factors), layout, {})


def _product(rewriting: Rewriting, call: Call) -> Moved | None:
    """Follow products of matrices whose last two axes have no samples: `matmul`, `bmm`, attention."""
    layouts = {rewriting.layout(name) for name in call.inputs if name in rewriting.on_samples}
    ranks = {len(rewriting.shapes[name]) for name in call.inputs}
    if len(layouts) > 1 or len(ranks) > 1 or not rewriting.on_samples.issuperset(call.inputs):
        return None
    (layout,), (rank,) = layouts, ranks
    if layout.axis >= rank - 2:
        return None
    return _finished_product(rewriting, call, layout, {name: rewriting.moved[name].name for name in call.inputs})


def _attention(rewriting: Rewriting, call: Call) -> Moved | None:
    """Follow attention, also with a mask, so that the rule alone judges it."""
    factors = {name: rewriting.moved.get(name) for name in call.inputs[:3]}
    layouts = {None if moved is None else moved.layout for moved in factors.values()}
    ranks = {len(rewriting.shapes[name]) for name in factors}
    layout = next(iter(layouts))
    if len(layouts) > 1 or len(ranks) > 1 or layout is None or layout.axis >= len(call.shape) - 2:
        return None
    operands = aligned(rewriting, call, layout, call.inputs)
    return None if operands is None else rewriting.finished(call, layout, renamed(call, operands))


def _along_axes(rewriting: Rewriting, call: Call) -> Moved | None:
    """Follow a call that acts along axes; over the samples' own axis only sums and means, which end them."""
    source, *others = call.inputs
    rank = len(rewriting.shapes[source])
    if rewriting.on_samples.intersection(others) or source not in rewriting.on_samples:
        return None
    key = "dims" if "dims" in call.arguments else "dim"
    given = call.arguments[key]
    axes = [axis % rank for axis in (given if isinstance(given, list) else [given]) if isinstance(axis, int)]
    if not axes:
        return None
    layout, arguments = rewriting.layout(source), renamed(call, {source: rewriting.moved[source].name})
    if layout.axis in axes:
        return _reduced_samples(rewriting, call, axes, arguments)
    positions = [layout.position(axis, rank) for axis in axes]
    arguments[key] = positions if isinstance(given, list) else positions[0]
    removed = axes if len(call.shape) < rank else []
    return rewriting.finished(call, layout.moved(layout.axis - sum(axis < layout.axis for axis in removed)), arguments)


def _reduced_samples(
    rewriting: Rewriting, call: Call, axes: Sequence[int], arguments: Mapping[str, object]
) -> Moved | None:
    source = call.inputs[0]
    layout, rank = rewriting.layout(source), len(rewriting.shapes[source])
    if call.op not in (_aten.sum.dim_IntList, _aten.mean.dim) or call.arguments["keepdim"]:
        return None
    positions = [layout.position(axis, rank) for axis in axes if axis in layout.order(rank)]
    return Moved(rewriting.write(call, call.op, {**arguments, "dim": [0, *positions]}, call.shape), None)


def _join(rewriting: Rewriting, call: Call) -> Moved | None:
    rank, dim = len(call.shape), call.arguments["dim"]
    assert isinstance(dim, int)
    axis, stacked = dim % rank, call.op is _aten.stack.default
    layouts = {rewriting.layout(name) for name in call.inputs if name in rewriting.on_samples}
    if len(layouts) > 1:
        return None
    (before,) = layouts
    layout = before.moved(before.axis + (stacked and axis <= before.axis))
    if axis == layout.axis:
        return None
    parts = {
        name: rewriting.moved[name].name if name in rewriting.on_samples else row_of(rewriting, name, before)
        for name in call.inputs
    }
    names = {name: part for name, part in parts.items() if part is not None}
    if len(names) < len(parts):
        return None
    return rewriting.finished(call, layout, {**renamed(call, names), "dim": layout.position(axis, rank)})


def _expansion(rewriting: Rewriting, call: Call) -> Moved | None:
    source = call.inputs[0]
    shape, before = rewriting.shapes[source], rewriting.layout(source)
    more = len(call.shape) - len(shape)
    layout = before.moved(before.axis + more)
    value = rewriting.reshaped(call, rewriting.moved[source].name, layout.first((1,) * more + shape))
    size = list(layout.first(call.shape))
    return rewriting.finished(call, layout, {"self": Reference(value), "size": size})


def _lookup(rewriting: Rewriting, call: Call) -> Moved | None:
    """Follow a call that gives each index a row of numbers, on a new last axis."""
    indices = call.inputs[-1]
    if rewriting.on_samples.intersection(call.inputs) != {indices}:
        return None
    arguments = renamed(call, {indices: rewriting.moved[indices].name})
    return rewriting.finished(call, rewriting.layout(indices), arguments)


def _last_axes(rewriting: Rewriting, call: Call) -> Moved | None:
    """Follow a call on the last axes, all of which are behind the samples'."""
    source, *others = call.inputs
    if rewriting.on_samples.intersection(others):
        return None
    touched = call.arguments.get("normalized_shape")
    count = len(touched) if isinstance(touched, list) else _padded_axes(call)
    layout = rewriting.layout(source)
    if layout.axis >= len(call.shape) - count:
        return None
    return rewriting.finished(call, layout, renamed(call, {source: rewriting.moved[source].name}))


def _padded_axes(call: Call) -> int:
    widths = call.arguments["pad"]
    plain = call.arguments.get("mode", "constant") == "constant"
    assert isinstance(widths, list)
    return (len(widths) + 1) // 2 if plain else len(call.shape)


def _cross_entropy(rewriting: Rewriting, call: Call) -> Moved | None:
    """Put the classes behind the samples, where losses expect them."""
    logits, target = call.inputs[:2]
    rank = len(rewriting.shapes[logits])
    if not rewriting.on_samples.issuperset((logits, target)) or rank < 2:
        return None
    before = rewriting.layout(logits)
    if before.axis == 1:
        return None
    layout = before.moved(before.axis - (before.axis > 1))
    labels = len(rewriting.shapes[target]) < rank
    if rewriting.layout(target) != (layout if labels else before):
        return None
    place = before.position(1, rank)
    order = [0, place, *(axis for axis in range(1, 1 + len(before.order(rank))) if axis != place)]
    names = {logits: rewriting.permuted(call, rewriting.moved[logits].name, order)}
    own = rewriting.moved[target].name
    names[target] = own if labels else rewriting.permuted(call, own, order)
    return rewriting.finished(call, layout, renamed(call, names))


def _total(rewriting: Rewriting, call: Call) -> Moved:
    """Follow a sum or mean over all elements."""
    (source,) = call.inputs
    return Moved(rewriting.write(call, call.op, renamed(call, {source: rewriting.moved[source].name}), ()), None)


_FOLLOW: Mapping[OpOverload, Follow] = {
    **dict.fromkeys(VIEWS, _view),
    **dict.fromkeys(PERMUTATIONS, _permutation),
    **dict.fromkeys(_ALONG_AXES, _along_axes),
    **dict.fromkeys(_JOINS, _join),
    **dict.fromkeys(_LOOKUPS, _lookup),
    **dict.fromkeys(_TOTALS, _total),
    **dict.fromkeys(_LAST_AXES, _last_axes),
    _aten.bmm.default: _product,
    _aten.cross_entropy_loss.default: _cross_entropy,
    _aten.expand.default: _expansion,
    _aten.linear.default: _linear,
    _aten.matmul.default: _linear,
    _aten.mm.default: _linear,
    _aten._scaled_dot_product_attention_math.default: _attention,
    _aten.scaled_dot_product_attention.default: _attention,
}
