"""Batches of any structure as a list of tensors and the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

Rebuild = Callable[[Sequence[Tensor]], object]


def flatten(batch: object) -> tuple[list[Tensor], Rebuild]:
    """Take the tensors out of a batch.

    Tuples, named tuples, lists, mappings and dataclasses are entered, to any depth; everything else that is not a
    tensor stays where it is. Fields of a dataclass that its constructor derives are derived anew, where
    `lightning_utilities.apply_to_collection` would take them for tensors of the batch.

    Returns:
        The tensors, in order, and a function that puts others in their places.

    Example:
        >>> import torch
        >>> leaves, rebuild = flatten({"x": torch.ones(2), "y": (torch.zeros(2), "name")})
        >>> len(leaves), rebuild([leaves[1], leaves[0]])["y"][1]
        (2, 'name')
    """
    leaves: list[Tensor] = []
    return leaves, _enter(batch, leaves)


def _enter(value: object, leaves: list[Tensor]) -> Rebuild:
    if isinstance(value, Tensor):
        position = len(leaves)
        leaves.append(value)
        return lambda tensors: tensors[position]
    if isinstance(value, Mapping):
        entries = {key: _enter(item, leaves) for key, item in value.items()}
        kind = type(value) if isinstance(value, dict) else dict
        return lambda tensors: _as(kind, {key: rebuild(tensors) for key, rebuild in entries.items()})
    if isinstance(value, tuple | list):
        items = [_enter(item, leaves) for item in value]
        make = type(value)._make if hasattr(value, "_make") else type(value)
        return lambda tensors: make([rebuild(tensors) for rebuild in items])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _enter(getattr(value, f.name), leaves) for f in dataclasses.fields(value) if f.init}
        return lambda tensors: dataclasses.replace(value, **{key: make(tensors) for key, make in fields.items()})
    return lambda tensors: value


def _as(kind: type, entries: dict[object, object]) -> object:
    return entries if kind is dict else kind(entries)
