"""Infinite scores of a softmax, as masks of attention fill them in, as the least finite numbers.

A softmax gives a probability of zero to a score of minus infinity as to the least number of its type, as long as there
are other scores; where all are minus infinity it is NaN, and the run ends by no numbers.
"""

import math
from dataclasses import replace

import torch

from agt_lightning.capture.graph import Call, Graph

_aten = torch.ops.aten


def finite_scores(graph: Graph) -> Graph:
    """Replace minus infinity where nothing but a softmax reads it."""
    return replace(graph, calls=tuple(_finite(graph, call) for call in graph.calls))


def _finite(graph: Graph, call: Call) -> Call:
    if call.op is not _aten.masked_fill.Scalar or call.arguments["value"] != -math.inf:
        return call
    users = graph.users(call.name)
    if not users or any(user.op is not _aten.softmax.int for user in users):
        return call
    return replace(call, arguments={**call.arguments, "value": torch.finfo(call.dtype).min})
