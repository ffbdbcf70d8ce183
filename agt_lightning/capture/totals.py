"""Losses that divide all samples by one number of the batch: the root of a mean, and means weighted by classes.

They are written as a mean or sum of shares, each a call that gives every sample's part of the loss. The gradient of
such a call is about the whole loss, as that of batch normalization is (docs/theory.md, section 16.7).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from agt_lightning.capture.graph import Call, Graph, Reference

_aten = torch.ops.aten


@torch.library.custom_op("agt_lightning::over_root_of_mean", mutates_args=())
def _over_root_of_mean(value: Tensor, addend: float) -> Tensor:
    return (value + addend) / (value.mean() + addend).sqrt()


@torch.library.custom_op("agt_lightning::over_total", mutates_args=())
def _over_total(value: Tensor, weights: Tensor) -> Tensor:
    return value / weights.sum()


_over_root_of_mean.register_fake(lambda value, addend: torch.empty_like(value))
_over_total.register_fake(lambda value, weights: torch.empty_like(value))

OVER_ROOT_OF_MEAN = torch.ops.agt_lightning.over_root_of_mean.default
"""``(ℓ + ε) / √(mean ℓ + ε)``, whose mean is the root."""

OVER_TOTAL = torch.ops.agt_lightning.over_total.default
"""``a / Σ w``, a and w of each sample."""


def rooted(graph: Graph) -> Graph:
    """Write the root of a mean, or of a mean and a number, as the mean of shares of the root.

    Args:
        graph: with losses split from their reductions, and samples first.
    """
    calls: list[Call] = []
    shapes = dict(graph.shapes)
    for call in graph.calls:
        found = _mean_under_root(graph, call)
        if found is None:
            calls.append(call)
            continue
        total, addend = found
        losses = total.inputs[0]
        arguments: dict[str, object] = {"value": Reference(losses), "addend": addend}
        name, shape = f"{call.name}.share", shapes[losses]
        share = replace(call, name=name, op=OVER_ROOT_OF_MEAN, arguments=arguments, shape=shape)
        shapes[name] = shape
        calls += [share, replace(call, op=total.op, arguments={**total.arguments, "self": Reference(name)})]
    return replace(graph, calls=tuple(calls), shapes=shapes)


def _mean_under_root(graph: Graph, call: Call) -> tuple[Call, float] | None:
    """Return the mean that a call takes the root of, and the number that is added to it before."""
    power = call.op is _aten.pow.Tensor_Scalar and call.arguments["exponent"] == 0.5
    if call.shape != () or not (call.op is _aten.sqrt.default or power):
        return None
    inner, addend = graph.producer(call.inputs[0]), 0.0
    if inner is not None and inner.op is _aten.add.Tensor and inner.arguments["alpha"] == 1:
        number = inner.arguments["other"]
        if not isinstance(number, int | float) or number < 0:
            return None
        inner, addend = graph.producer(inner.inputs[0]), float(number)
    if inner is None or inner.op is not _aten.mean.default or not graph.shapes[inner.inputs[0]]:
        return None
    return inner, addend
