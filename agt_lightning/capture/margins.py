"""Losses with margins that torch takes in one call, written out as the calls that they consist of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch._ops import OpOverload

from agt_lightning.capture.graph import Call, Graph, Reference

_aten = torch.ops.aten

Written = tuple[list[Call], str]
"""Calls, and the name of the result of the last one."""

_TINY = 1e-12
"""What ``cosine_embedding_loss`` adds to each squared norm."""


class _Parts:
    """The calls that are written in place of one.

    Args:
        whole: the call to replace.
    """

    def __init__(self, whole: Call) -> None:
        self.whole = whole
        self.calls: list[Call] = []

    def write(
        self, op: OpOverload, shape: Sequence[int], kind: torch.dtype | None = None, /, **given: object
    ) -> Reference:
        """Append a call and return a reference to its result, of the type of the whole unless told otherwise."""
        name, dtype = f"{self.whole.name}.{len(self.calls)}", kind or self.whole.dtype
        arguments = {each.name: given.get(each.name, each.default_value) for each in op._schema.arguments}
        self.calls.append(replace(self.whole, name=name, op=op, arguments=arguments, shape=tuple(shape), dtype=dtype))
        return Reference(name)

    def reduced(self, losses: Reference) -> Written:
        """Return the calls with the reduction that the whole asks for."""
        reduction = self.whole.arguments["reduction"]
        if reduction == 0:
            return self.calls, losses.name
        return self.calls, self.write(_aten.mean.default if reduction == 1 else _aten.sum.default, (), self=losses).name


def _multi_margin(call: Call, rows: tuple[int, ...]) -> Written:
    """``Σ_j (1 - e_j) max(0, m - e·x + x_j)ᵖ / C`` with the unit e of the label among C classes.

    Its kernel takes the same sums and products, forward and backward.
    """
    parts, given, one = _Parts(call), call.arguments, (rows[0], 1)
    scores, labels = (Reference(name) for name in call.inputs)
    own = parts.write(_aten.one_hot.default, rows, torch.int64, self=labels, num_classes=rows[1])
    unit = parts.write(_aten.to.dtype, rows, self=own, dtype=call.dtype)
    chosen = parts.write(_aten.mul.Tensor, rows, self=scores, other=unit)
    score = parts.write(_aten.sum.dim_IntList, one, self=chosen, dim=[1], keepdim=True)
    short = parts.write(_aten.rsub.Scalar, one, self=score, other=given["margin"])
    ahead = parts.write(_aten.add.Tensor, rows, self=short, other=scores)
    margins = parts.write(_aten.clamp_min.default, rows, self=ahead, min=0)
    if given["p"] == 2:
        margins = parts.write(_aten.square.default, rows, self=margins)
    others = parts.write(_aten.rsub.Scalar, rows, self=unit, other=1)
    counted = parts.write(_aten.mul.Tensor, rows, self=margins, other=others)
    return parts.reduced(parts.write(_aten.mean.dim, rows[:1], self=counted, dim=[1]))


def _cosine_embedding(call: Call, rows: tuple[int, ...]) -> Written:
    """``1 - cos`` for pairs with target 1, ``max(0, cos - m)`` for those with target -1, and zero for others."""
    parts, each = _Parts(call), rows[:1]
    one, other, target = (Reference(name) for name in call.inputs)

    def dot(first: Reference, second: Reference) -> Reference:
        product = parts.write(_aten.mul.Tensor, rows, self=first, other=second)
        return parts.write(_aten.sum.dim_IntList, each, self=product, dim=[1])

    squares = [parts.write(_aten.add.Tensor, each, self=dot(value, value), other=_TINY) for value in (one, other)]
    product = parts.write(_aten.mul.Tensor, each, self=squares[0], other=squares[1])
    root = parts.write(_aten.sqrt.default, each, self=product)
    cosine = parts.write(_aten.div.Tensor, each, self=dot(one, other), other=root)
    apart = parts.write(_aten.rsub.Scalar, each, self=cosine, other=1)
    above = parts.write(_aten.sub.Tensor, each, self=cosine, other=call.arguments["margin"])
    near = parts.write(_aten.clamp_min.default, each, self=above, min=0)
    losses = []
    for sign, loss in ((1, apart), (-1, near)):
        counts = parts.write(_aten.eq.Scalar, each, torch.bool, self=target, other=sign)
        losses.append(parts.write(_aten.where.ScalarOther, each, condition=counts, self=loss, other=0))
    return parts.reduced(parts.write(_aten.add.Tensor, each, self=losses[0], other=losses[1]))


_WRITTEN: Mapping[OpOverload, Callable[[Call, tuple[int, ...]], Written]] = {
    _aten.cosine_embedding_loss.default: _cosine_embedding,
    _aten.multi_margin_loss.default: _multi_margin,
}

MARGIN_LOSSES = frozenset(_WRITTEN)
"""Losses that have a form in other calls."""


def is_margin_loss(graph: Graph, call: Call) -> bool:
    """Return whether a call is a loss of rows that `written_margins` writes out.

    Others, such as those with class weights, are left to be refused.
    """
    if call.op not in _WRITTEN or call.arguments.get("weight") is not None or call.arguments.get("p", 1) not in (1, 2):
        return False
    first, *others = (graph.shapes[name] for name in call.inputs)
    return len(first) == 2 and others[-1] == first[:1] and all(shape == first for shape in others[:-1])


def written_margins(call: Call, shapes: Mapping[str, tuple[int, ...]]) -> Written:
    """Return the calls of a margin loss.

    Args:
        call: for which `is_margin_loss` is true.
        shapes: of all values before it.
    """
    return _WRITTEN[call.op](call, shapes[call.inputs[0]])
