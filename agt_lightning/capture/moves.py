"""Kinds of calls: those that keep the order of elements, those that permute axes, and those on single elements."""

from __future__ import annotations

import torch

from agt_lightning.capture.graph import Call
from agt_lightning.capture.reductions import LOSSES

_aten = torch.ops.aten

VIEWS = frozenset(
    {
        _aten._unsafe_view.default,
        _aten.flatten.using_ints,
        _aten.reshape.default,
        _aten.squeeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.unflatten.int,
        _aten.unsqueeze.default,
        _aten.view.default,
    }
)
"""Calls whose elements are those of their input in the same order, in another shape."""

PERMUTATIONS = frozenset(
    {
        _aten.mT.default,
        _aten.movedim.int,
        _aten.movedim.intlist,
        _aten.numpy_T.default,
        _aten.permute.default,
        _aten.swapaxes.default,
        _aten.swapdims.default,
        _aten.t.default,
        _aten.transpose.int,
    }
)
"""Calls that put axes in another order."""

_ELEMENTWISE = (LOSSES - {_aten.cross_entropy_loss.default}) | {
    _aten._to_copy.default,
    _aten.detach.default,
    _aten.dropout.default,
    _aten.log_sigmoid.default,
    _aten.masked_fill.Tensor,
    _aten.to.dtype,
    _aten.to.dtype_layout,
}
"""Calls on single elements that torch does not tag as such; losses are split from their reductions."""


def is_elementwise(call: Call) -> bool:
    """Return whether each element of the result is computed from the elements of its place, after broadcasting."""
    return torch.Tag.pointwise in call.op.tags or call.op in _ELEMENTWISE


def order_of_axes(call: Call) -> list[int]:
    """Return which axis of its input each axis of a permutation's result is."""
    settings = [argument.name for argument in call.op._schema.arguments][1:]
    marked = torch.empty(tuple(range(2, len(call.shape) + 2)), device="meta")
    return [size - 2 for size in call.op(marked, *(call.arguments[name] for name in settings)).shape]
