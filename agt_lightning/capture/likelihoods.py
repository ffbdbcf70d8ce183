"""``gaussian_nll_loss`` by calls that have rules, and its check of the variances, which ends the run where it fails.

Recording sees the loss as one call, so that Python's branch on the check is out of sight. It cuts the variances from
below without their gradient noticing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from agt_lightning.capture.graph import VALUE_ONLY, Call, Graph, Reference
from agt_lightning.capture.recording import branch

_aten = torch.ops.aten


@torch.library.custom_op("agt_lightning::at_least", mutates_args=())
def _at_least(value: Tensor, least: float) -> Tensor:
    return value.clamp(min=least)


_at_least.register_fake(lambda value, least: torch.empty_like(value))
_at_least.register_autograd(lambda context, grad: (grad, None))

_AT_LEAST = torch.ops.agt_lightning.at_least.default


def _gaussian_nll_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """Compute what `torch.nn.functional.gaussian_nll_loss` computes, and end the run as it does on another path."""
    if not isinstance(var, Tensor) or reduction not in ("none", "mean", "sum"):
        return F.gaussian_nll_loss(input, target, var, full=full, eps=eps, reduction=reduction)
    if var.shape != input.shape and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    if branch("a check of variances"):
        raise ValueError("var has negative entry/entries")
    var = cast("Tensor", _AT_LEAST(var, eps))
    loss = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
    loss = loss + 0.5 * math.log(2 * math.pi) if full else loss
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


WITH_CHECKS_SEEN: Mapping[object, Callable[..., Any]] = {F.gaussian_nll_loss: _gaussian_nll_loss}
"""Functions of torch that end the run for some data, and others that do and compute the same, in sight of a recording.
"""


def plainly_cut(graph: Graph) -> Graph:
    """Replace cuts whose gradients pass by the calls that have a rule."""
    if not any(call.op is _AT_LEAST for call in graph.calls):
        return graph
    return replace(graph, calls=tuple(_plain(call) for call in graph.calls))


def _plain(call: Call) -> Call:
    if call.op is not _AT_LEAST:
        return call
    arguments = {"self": Reference(call.inputs[0]), "min": call.arguments["least"], VALUE_ONLY: True}
    return replace(call, op=_aten.clamp_min.default, arguments=arguments)
