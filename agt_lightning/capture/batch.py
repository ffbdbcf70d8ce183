"""Flattening of batches of any structure to a list of tensors, and its inverse.

`lightning_utilities.core.apply_func.apply_to_collection`, with which Lightning moves batches, does not serve. It leaves
the tensors of a frozen dataclass in place, so the captured graph would hold features as constants; and it keeps fields
that ``__post_init__`` derives from other tensors, instead of deriving them again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

Rebuild = Callable[[Sequence[Tensor]], object]
"""A function that makes a batch of the original structure from a list of tensors."""


def flatten(batch: object) -> tuple[list[Tensor], Rebuild]:
    """Take the tensors out of a batch.

    Tuples, named tuples, lists, mappings and dataclasses are traversed, to any depth; everything else that is not a
    tensor is left as it is.

    Args:
        batch: the batch; not changed.

    Returns:
        The tensors, in order, and a function that rebuilds the batch with other tensors.

    Example:
        >>> import torch
        >>> leaves, rebuild = flatten({"x": torch.ones(2), "y": (torch.zeros(2), "name")})
        >>> len(leaves), rebuild([leaves[1], leaves[0]])["y"][1]
        (2, 'name')
    """
    leaves: list[Tensor] = []
    return leaves, _flatten(batch, leaves)


def _flatten(value: object, leaves: list[Tensor]) -> Rebuild:
    """Append the tensors of a value to ``leaves``, and return the function that rebuilds it."""
    if isinstance(value, Tensor):
        position = len(leaves)
        leaves.append(value)
        return lambda tensors: tensors[position]
    if isinstance(value, Mapping):
        entries = {key: _flatten(item, leaves) for key, item in value.items()}
        mapping_type = type(value) if isinstance(value, dict) else dict
        return lambda tensors: mapping_type({key: rebuild(tensors) for key, rebuild in entries.items()})
    if isinstance(value, tuple | list):
        items = [_flatten(item, leaves) for item in value]
        make = type(value)._make if hasattr(value, "_make") else type(value)
        return lambda tensors: make([rebuild(tensors) for rebuild in items])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _flatten(getattr(value, f.name), leaves) for f in dataclasses.fields(value) if f.init}
        return lambda tensors: dataclasses.replace(value, **{key: make(tensors) for key, make in fields.items()})
    return lambda tensors: value
