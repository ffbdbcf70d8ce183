"""Losses of a batch, split into losses of samples, their weights, and a reduction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from agt_lightning.capture.graph import COUNTED_MEAN, Call, Graph, Reference
from agt_lightning.capture.reached import reached

_aten = torch.ops.aten

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
"""Calls with an argument ``reduction`` over the batch (0 none, 1 mean, 2 sum)."""


def unweighted(graph: Graph) -> Graph:
    """Replace the argument ``weight`` of ``binary_cross_entropy_with_logits`` by a product.

    It multiplies each loss, and the mean divides by the number of losses. Class weights of `cross_entropy` are left:
    its mean divides by the weights of all labels.
    """
    calls: list[Call] = []
    shapes = dict(graph.shapes)
    for call in graph.calls:
        weight = call.arguments.get("weight")
        if call.op is not _aten.binary_cross_entropy_with_logits.default or weight is None:
            calls.append(call)
            continue
        loss = _of_samples(call, f"{call.name}_unweighted", shapes)
        loss = replace(loss, arguments={**loss.arguments, "weight": None})
        whole = call.arguments["reduction"] == 0
        product = replace(
            loss,
            name=call.name if whole else f"{call.name}_weighted",
            op=_aten.mul.Tensor,
            arguments={"self": Reference(loss.name), "other": weight},
        )
        calls += [loss, product] if whole else [loss, product, _reduction(call, product)]
        shapes |= {loss.name: loss.shape, product.name: product.shape}
    return replace(graph, calls=tuple(calls), shapes=shapes)


def reduced(graph: Graph) -> Graph:
    """Split a loss with a reduction into the per-sample loss and a separate reduction."""
    calls: list[Call] = []
    shapes = dict(graph.shapes)
    for call in graph.calls:
        if call.op not in LOSSES or call.arguments.get("reduction") == 0:
            calls.append(call)
            continue
        loss = _of_samples(call, f"{call.name}_per_sample", shapes)
        calls += [loss, _reduction(call, loss)]
        shapes[loss.name] = loss.shape
    return replace(graph, calls=tuple(calls), shapes=shapes)


def distributed(graph: Graph) -> Graph:
    """Multiply the losses of samples, in place of their mean or sum, by a number that is made of parameters.

    Learned weights of several losses are such numbers: ``w mean(ℓ) = mean(w ℓ)``. A divisor that is made of the batch
    without parameters, such as the number of targets that are there, divides each loss likewise; where poison reaches
    it, that division is refused.
    """
    calls: list[Call] = []
    shapes = dict(graph.shapes)
    leaves = reached(graph, {*graph.leaves, *graph.masks, *graph.given})
    made = reached(graph, set(graph.parameters))
    for call in graph.calls:
        pair = _weighted_total(graph, call, made - leaves, leaves) or _divided_total(graph, call, made, leaves)
        if pair is None:
            calls.append(call)
            continue
        total, weight = pair
        source = total.inputs[0]
        product = replace(
            total,
            name=f"{call.name}.each",
            op=call.op,
            arguments={"self": Reference(source), "other": Reference(weight)},
            shape=graph.shapes[source],
        )
        shapes[product.name] = product.shape
        calls += [
            product,
            replace(total, name=call.name, arguments={**total.arguments, "self": Reference(product.name)}),
        ]
    return replace(graph, calls=tuple(calls), shapes=shapes)


def _weighted_total(
    graph: Graph, call: Call, weights: frozenset[str], leaves: frozenset[str]
) -> tuple[Call, str] | None:
    """Return the mean or sum that a call multiplies, and the number that it multiplies it by."""
    if call.op is not _aten.mul.Tensor or call.shape != () or len(call.inputs) != 2:
        return None
    for name, weight in (call.inputs, call.inputs[::-1]):
        total = graph.producer(name)
        totals = total is not None and total.op in (_aten.mean.default, _aten.sum.default) and name in leaves
        if totals and weight in weights and graph.shapes[weight] == ():
            assert total is not None
            return total, weight
    return None


def _divided_total(graph: Graph, call: Call, made: frozenset[str], leaves: frozenset[str]) -> tuple[Call, str] | None:
    """Return the mean or sum that a call divides, and the number of the batch that it divides it by."""
    if call.op is not _aten.div.Tensor or call.shape != () or len(call.inputs) != 2:
        return None
    name, divisor = call.inputs
    total = graph.producer(name)
    if total is None or total.op not in (_aten.mean.default, _aten.sum.default) or name not in made & leaves:
        return None
    return (total, divisor) if divisor in leaves - made and graph.shapes[divisor] == () else None


def _of_samples(loss: Call, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Call:
    """Return the call without its reduction."""
    arguments = {**loss.arguments, "reduction": 0}
    if loss.op is _aten.cross_entropy_loss.default and loss.arguments["reduction"] == 1:
        arguments[COUNTED_MEAN] = True
    return replace(loss, name=name, shape=_shape_of_samples(loss, shapes), arguments=arguments)


def _reduction(loss: Call, values: Call) -> Call:
    """Return the call that reduces the losses of samples as ``loss`` does."""
    op = _aten.mean.default if loss.arguments["reduction"] == 1 else _aten.sum.default
    return replace(loss, op=op, arguments={"self": Reference(values.name), "dtype": None})


def _shape_of_samples(loss: Call, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of a loss before reduction: without the class axis, or prediction and target broadcast."""
    prediction, target = (shapes[name] for name in loss.inputs[:2])
    if loss.op is _aten.cross_entropy_loss.default:
        return prediction[:1] + prediction[2:]
    return tuple(torch.broadcast_shapes(prediction, target))
