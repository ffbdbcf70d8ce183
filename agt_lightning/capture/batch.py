"""Flattening of batches of any structure to a list of tensors, and its inverse.

`lightning_utilities.core.apply_func.apply_to_collection`, with which Lightning moves batches, does not serve. It leaves
the tensors of a frozen dataclass in place, so the captured graph would hold features as constants; and it keeps fields
that ``__post_init__`` derives from other tensors, instead of deriving them again.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor

from agt_lightning.capture.withheld import Withheld

Rebuild = Callable[[Sequence[Tensor]], object]
"""A function that makes a batch of the original structure from a list of tensors."""

_Make = Callable[[Sequence[Tensor], Sequence[object]], object]
"""A function that makes a value from all tensors and all other entries of the batch."""


@dataclasses.dataclass(frozen=True)
class FlatBatch:
    """The entries of a batch, taken out of its containers.

    Args:
        tensors: the tensors, in order.
        others: all other entries, such as numbers and strings, in order.
        structure: types and keys of the containers, with equal values for batches of one structure.
        make: makes a batch of this structure from other tensors and other entries.
    """

    tensors: tuple[Tensor, ...]
    others: tuple[object, ...]
    structure: Hashable
    make: _Make

    @classmethod
    def of(cls, batch: object) -> FlatBatch:
        """Take the entries out of a batch; the batch is not changed.

        Tuples, named tuples, lists, mappings and dataclasses are traversed, to any depth.

        Example:
            >>> import torch
            >>> entries = FlatBatch.of({"x": torch.ones(2), "meta": (3, "name")})
            >>> len(entries.tensors), entries.others
            (1, (3, 'name'))
        """
        tensors: list[Tensor] = []
        others: list[object] = []
        structure, make = _take(batch, tensors, others)
        return cls(tuple(tensors), tuple(others), structure, make)

    def rebuild(self, tensors: Sequence[Tensor]) -> object:
        """Return a batch of new containers with other tensors, and the other entries as they are."""
        return self.make(tensors, self.others)


def flatten(batch: object) -> tuple[list[Tensor], Rebuild]:
    """Take the tensors out of a batch; see `FlatBatch`.

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
    entries = FlatBatch.of(batch)
    return list(entries.tensors), entries.rebuild


def _take(value: Any, tensors: list[Tensor], others: list[object]) -> tuple[Hashable, _Make]:
    """Append the entries of a value to the lists; return its structure, and the function that makes it again."""
    if type(value) is Withheld:
        return _other(value, others)
    if isinstance(value, Tensor):
        at = len(tensors)
        tensors.append(value)
        return Tensor, lambda tensors, others: tensors[at]
    if isinstance(value, Mapping):
        return _parts(value, dict(value), _mapping_like(value), tensors, others)
    if isinstance(value, tuple | list):
        make = type(value)._make if hasattr(value, "_make") else type(value)
        return _parts(value, dict(enumerate(value)), lambda items: make(items.values()), tensors, others)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return _parts(value, fields, lambda items: dataclasses.replace(value, **items), tensors, others)
    return _other(value, others)


def _other(value: object, others: list[object]) -> tuple[Hashable, _Make]:
    at = len(others)
    others.append(value)
    return None, lambda tensors, others: others[at]


def _parts(
    container: object,
    items: Mapping[Any, object],
    remake: Callable[[dict[Any, object]], object],
    tensors: list[Tensor],
    others: list[object],
) -> tuple[Hashable, _Make]:
    taken = {key: _take(item, tensors, others) for key, item in items.items()}
    structure = (type(container), tuple((key, inner) for key, (inner, _) in taken.items()))
    return structure, lambda tensors, others: remake({key: make(tensors, others) for key, (_, make) in taken.items()})


def _mapping_like(mapping: Mapping[Any, object]) -> Callable[[dict[Any, object]], object]:
    """Return a function that puts items into a mapping of the same type; a plain dict for types that are no dicts."""
    if type(mapping) is dict or not isinstance(mapping, dict):
        return lambda items: items
    like = copy.copy(mapping)  # code may take entries out of the mapping itself

    def remake(items: dict[Any, object]) -> object:
        made = copy.copy(like)
        made.update(items)
        return made

    return remake
