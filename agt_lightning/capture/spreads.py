"""Variances and standard deviations, all written as variances: a standard deviation is the root of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch._ops import OpOverload

from agt_lightning.capture.graph import ITEM, Call, Reference

_aten = torch.ops.aten

_ROOTS: frozenset[OpOverload] = frozenset(
    {
        _aten.std.correction,
        _aten.std.default,
        _aten.std.dim,
        _aten.std_mean.correction,
        _aten.std_mean.default,
        _aten.std_mean.dim,
    }
)

SPREADS: frozenset[OpOverload] = _ROOTS | {
    _aten.var.default,
    _aten.var.dim,
    _aten.var_mean.correction,
    _aten.var_mean.default,
    _aten.var_mean.dim,
}
"""Calls that are written as ``aten.var.correction``, whose kernel and gradient they share."""


def written_spread(call: Call, shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[Call], str]:
    """Return a variance or mean over the same axes, with the root of a standard deviation, and the name of the result.

    Args:
        call: one of `SPREADS`.
        shapes: of all values before it.
    """
    given = call.arguments
    axes = given.get("dim") or list(range(len(shapes[call.inputs[0]])))
    where = {"self": Reference(call.inputs[0]), "dim": axes, "keepdim": bool(given.get("keepdim"))}
    if given.get(ITEM) == 1:
        mean = replace(call, name=f"{call.name}.mean", op=_aten.mean.dim, arguments={**where, "dtype": None})
        return [mean], mean.name
    correction = given.get("correction", int(bool(given.get("unbiased", True))))
    arguments = {**where, "correction": 1 if correction is None else correction}
    variance = replace(call, name=f"{call.name}.variance", op=_aten.var.correction, arguments=arguments)
    if call.op not in _ROOTS:
        return [variance], variance.name
    root = replace(call, name=f"{call.name}.root", op=_aten.sqrt.default, arguments={"self": Reference(variance.name)})
    return [variance, root], root.name
