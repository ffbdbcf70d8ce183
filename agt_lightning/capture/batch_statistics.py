"""Batch normalization in training mode, apart from the running statistics that it keeps beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from agt_lightning.capture.graph import ITEM, Call, Graph, Reference

_aten = torch.ops.aten

BY_BATCH = _aten._native_batch_norm_legit.no_stats
"""The overload by which all batch normalizations in training mode are recorded."""

RUNNING = "running_statistics"
"""Extra argument of such a call: `Running`, or None if it keeps no statistics."""

_FUNCTIONAL = _aten._native_batch_norm_legit_functional.default
_ITEMS = {"running_mean": 3, "running_var": 4}


@dataclass(frozen=True)
class Running:
    """The buffers that a batch normalization moves towards the statistics of each batch.

    Args:
        mean: name in the module of the one for means.
        variance: of the one for variances.
        momentum: share of the batch in the sum.
    """

    mean: str
    variance: str
    momentum: float


def by_batch_statistics(graph: Graph, updates: Mapping[str, str]) -> Graph:
    """Let batch normalizations in training mode not read what they keep of earlier batches: nothing comes of it.

    A layer that runs more than once in a step moves its buffers more than once. It stays as it is, and is refused.

    Args:
        graph: as it was captured.
        updates: name of the value that each buffer has at the end, by the buffer's name in the module.
    """
    producers = {call.name: call for call in graph.calls}
    calls = tuple(_alone(call, graph, updates, producers) for call in graph.calls)
    return replace(graph, calls=calls)


def _alone(call: Call, graph: Graph, updates: Mapping[str, str], producers: Mapping[str, Call]) -> Call:
    arguments = call.arguments
    if call.op is _aten.batch_norm.default and arguments["training"] and arguments["running_mean"] is None:
        return replace(call, op=BY_BATCH, arguments={**_kept(call), ITEM: 0, RUNNING: None})
    if call.op is not _FUNCTIONAL or arguments[ITEM] != 0:
        return call
    names = [_buffer_moved_once(call, key, graph, updates, producers) for key in _ITEMS]
    momentum = arguments["momentum"]
    if None in names or not isinstance(momentum, int | float):
        return call
    mean, variance = (str(name) for name in names)
    return replace(call, op=BY_BATCH, arguments={**_kept(call), RUNNING: Running(mean, variance, float(momentum))})


def _kept(call: Call) -> dict[str, object]:
    left_out = {*_ITEMS, "cudnn_enabled"}
    return {name: value for name, value in call.arguments.items() if name not in left_out}


def _buffer_moved_once(
    call: Call, key: str, graph: Graph, updates: Mapping[str, str], producers: Mapping[str, Call]
) -> str | None:
    """Return the buffer that a call reads and that ends as the call leaves it; None if there is more to it."""
    read = call.arguments[key]
    buffer = graph.buffers.get(read.name) if isinstance(read, Reference) else None
    last = producers.get(updates.get(buffer or "", ""))
    moved = last is not None and last.op is call.op and {**last.arguments, ITEM: 0} == dict(call.arguments)
    return buffer if last is not None and moved and last.arguments[ITEM] == _ITEMS[key] else None
