"""Calls that torch makes of other calls, written out as these.

Recording keeps `kl_div` or `einsum` as one call, though torch computes it, and its gradient, by calls that have rules.
What is written out is what a training runs, on every device: bounds and roundings of the parts are those of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from agt_lightning.capture.graph import VALUE_ONLY, Call, Graph, Reference, map_references
from agt_lightning.capture.margins import MARGIN_LOSSES, is_margin_loss, written_margins
from agt_lightning.capture.reader import GraphReader
from agt_lightning.capture.rewriting import renamed
from agt_lightning.capture.spreads import SPREADS, written_spread

_aten = torch.ops.aten

COMPOSED: frozenset[OpOverload] = frozenset(
    {
        _aten._weight_norm.default,
        _aten.cosine_similarity.default,
        _aten.einsum.default,
        _aten.kl_div.default,
        _aten.margin_ranking_loss.default,
        _aten.pairwise_distance.default,
        _aten.poisson_nll_loss.default,
        _aten.triplet_margin_loss.default,
    }
)
"""Calls without a kernel and without a derivative of their own, and the product of a direction and a length.

Kernels of the latter take the same products and sums, in some order, forward and backward.
"""

_WITH_NUMBERS = {_aten.add.Scalar: _aten.add.Tensor, _aten.sub.Scalar: _aten.sub.Tensor}
"""Overloads for numbers, and those for tensors, which take numbers too."""

_IN_PLACE = {
    _aten.clamp_min_.default: _aten.clamp_min.default,
}
"""Calls that change a value which nothing but the whole call has seen."""


def composed(graph: Graph) -> Graph:
    """Write out the calls that are composed of others.

    Args:
        graph: as it was recorded.
    """
    written = {call.name for call in graph.calls if call.op in COMPOSED | SPREADS or is_margin_loss(graph, call)}
    if not written:
        return graph
    calls: list[Call] = []
    shapes, types = dict(graph.shapes), dict(graph.types)
    names: dict[str, str] = {}
    for call in graph.calls:
        call = replace(call, arguments=renamed(call, names))
        if call.name not in written:
            calls.append(call)
            continue
        parts, names[call.name] = _parts(call, shapes, types)
        calls += parts
        shapes |= {part.name: part.shape for part in parts}
        types |= {part.name: part.dtype for part in parts}
    output = names.get(graph.output, graph.output)
    return replace(graph, calls=tuple(calls), shapes=shapes, types=types, output=output)


def _parts(
    call: Call, shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, torch.dtype]
) -> tuple[list[Call], str]:
    """Return the calls that one runs, and the name of their result."""
    if call.op in MARGIN_LOSSES:
        return written_margins(call, shapes)
    if call.op in SPREADS:
        return written_spread(call, shapes)
    if call.op is _aten._weight_norm.default:
        return _direction_times_length(call, shapes)
    names = list(dict.fromkeys(call.inputs))

    def run(*tensors: Tensor) -> tuple[Tensor]:
        values = dict(zip(names, tensors, strict=True))
        given = {key: map_references(value, lambda one: values[one.name]) for key, value in call.arguments.items()}
        schema = call.op._schema.arguments
        positional = [given[each.name] for each in schema if not each.kwarg_only]
        return (call.op.decompose(*positional, **{each.name: given[each.name] for each in schema if each.kwarg_only}),)

    traced = make_fx(run)(*(torch.empty(shapes[name], dtype=types[name], device="meta") for name in names))
    reader = GraphReader(traced, prefix=f"{call.name}.")
    (result,) = reader.read(names)
    parts, last = _functional(reader.calls)
    placed = [replace(part, source=call.source, module=call.module) for part in parts]
    return placed, last.get(result, result)


def _functional(calls: Sequence[Call]) -> tuple[list[Call], dict[str, str]]:
    """Return calls that change nothing in place, and the last name of each value that was changed."""
    parts: list[Call] = []
    last: dict[str, str] = {}
    for call in calls:
        arguments = renamed(call, last)
        if call.op in _IN_PLACE or call.op is _aten.clamp_min_.Tensor:
            changed = [name for name in (*last, call.inputs[0]) if last.get(name, name) == _first(arguments)]
            last |= dict.fromkeys(changed, call.name)
        parts += _written(call, arguments, parts)
    return parts, last


def _first(arguments: Mapping[str, object]) -> str:
    first = arguments["self"]
    assert isinstance(first, Reference)
    return first.name


def _written(call: Call, arguments: dict[str, object], before: Sequence[Call]) -> list[Call]:
    """Return a call in its normal form."""
    if call.op is _aten.xlogy.Tensor:
        return _product_with_logarithm(call, arguments)
    if call.op is _aten.clamp_min_.Tensor:  # of a norm, under `no_grad`: the least number is a constant
        (least,) = (each.arguments["s"] for each in before if each.name == call.inputs[1])
        return [
            replace(
                call, op=_aten.clamp_min.default, arguments={"self": arguments["self"], "min": least, VALUE_ONLY: True}
            )
        ]
    op = {**_WITH_NUMBERS, **_IN_PLACE}.get(call.op, call.op)
    return [replace(call, op=op, arguments=arguments)]


def _product_with_logarithm(call: Call, arguments: Mapping[str, object]) -> list[Call]:
    """``x log y``: the same for x above zero, and the logarithm's rule refuses zero."""
    logarithm = replace(call, name=f"{call.name}.log", op=_aten.log.default, arguments={"self": arguments["other"]})
    product = {"self": arguments["self"], "other": Reference(logarithm.name)}
    return [logarithm, replace(call, op=_aten.mul.Tensor, arguments=product)]


def _direction_times_length(call: Call, shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[Call], str]:
    """``v (g / ‖v‖)``, with a norm for each place of one axis, or of all elements."""
    direction, length = (Reference(name) for name in call.inputs)
    shape, kept = shapes[direction.name], call.arguments["dim"]
    assert isinstance(kept, int)
    axes = [axis for axis in range(len(shape)) if kept == -1 or axis != kept % len(shape)]
    arguments = {"self": direction, "ord": 2, "dim": axes, "keepdim": True, "dtype": None}
    small = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    norm = replace(
        call, name=f"{call.name}.norm", op=_aten.linalg_vector_norm.default, arguments=arguments, shape=small
    )
    quotient = {"self": length, "other": Reference(norm.name)}
    ratio = replace(call, name=f"{call.name}.ratio", op=_aten.div.Tensor, arguments=quotient, shape=small)
    product = {"self": direction, "other": Reference(ratio.name)}
    whole = replace(call, name=f"{call.name}.whole", op=_aten.mul.Tensor, arguments=product)
    return [norm, ratio, whole], whole.name
