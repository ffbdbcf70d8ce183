"""The tensors of a batch by the names that users know: keys, positions and fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.capture.withheld import Withheld

Selection = str | int | Sequence[str | int]
"""Entries of a batch, see `selected`: one name or several."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a batch.

    Args:
        name: how code reads it, such as ``batch['x']``, ``batch[0]`` or ``batch.image``.
        groups: names of the entry and of all containers around it, outermost first.
        keys: key, position or field of the batch that it is, or is in.
        shape: of the tensor.
        dtype: of the tensor.
    """

    name: str
    groups: tuple[str, ...]
    keys: tuple[object, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        """Return name, type and shape, for messages."""
        return f"{self.name} ({str(self.dtype).removeprefix('torch.')} of shape {self.shape})"

    def answers_to(self, name: str | int) -> bool:
        """Return whether a user's name means this entry or a container around it."""
        return name in self.groups or any(type(key) is type(name) and key == name for key in self.keys)


def entries(batch: object) -> list[Entry]:
    """Return the tensors of a batch in the order of `flatten`.

    Example:
        >>> [entry.name for entry in entries({"x": torch.ones(2), "pair": (torch.zeros(2), "name")})]
        ["batch['x']", "batch['pair'][0]"]
    """
    return list(_entries(batch, ("batch",), ()))


def selected(among: Sequence[Entry], selection: Selection) -> set[int]:
    """Return the positions of the entries that a user names.

    Args:
        among: all entries of the batch.
        selection: keys, positions or fields of the batch, or names as messages print them. A container means all
            tensors in it.

    Raises:
        LookupError: if a name means no tensor of the batch; the message lists those that there are.

    Example:
        >>> batch = {"x": torch.ones(2), "pair": (torch.zeros(2), torch.zeros(2))}
        >>> selected(entries(batch), "pair"), selected(entries(batch), ["x", "batch['pair'][1]"])
        ({1, 2}, {0, 2})
    """
    names = [selection] if isinstance(selection, str | int) else list(selection)
    positions: set[int] = set()
    for name in names:
        found = {position for position, entry in enumerate(among) if entry.answers_to(name)}
        if not found:
            raise LookupError(f"no tensor of the batch is called {name!r}. The batch has {listing(among)}")
        positions |= found
    return positions


def listing(among: Sequence[Entry]) -> str:
    """Return names, types and shapes of entries as one phrase."""
    return ", ".join(str(entry) for entry in among) or "no tensors"


def check_selection(name: str, selection: object) -> None:
    """Require names of batch entries, or None.

    Raises:
        TypeError: if it is something else.
    """
    if selection is None or isinstance(selection, str | int) and not isinstance(selection, bool):
        return
    if not isinstance(selection, Sequence) or not all(type(part) in (str, int) for part in selection):
        raise TypeError(
            f"Expected `{name}` to be a key or position of the batch, a sequence of them or None, but got "
            f"{selection!r}."
        )


def _entries(value: object, groups: tuple[str, ...], keys: tuple[object, ...]) -> Iterator[Entry]:
    """Yield the tensors of a value, which the same containers as in `flatten` hold."""
    if type(value) is Withheld:
        return
    if isinstance(value, Tensor):
        yield Entry(groups[-1], groups, keys, tuple(value.shape), value.dtype)
        return
    for suffix, aliases, item in _items(value):
        yield from _entries(item, (*groups, groups[-1] + suffix), keys or aliases)


def _items(value: object) -> Iterator[tuple[str, tuple[object, ...], object]]:
    """Yield each item of a container, with the code that reads it and its key, position or field."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", (key,), item) for key, item in value.items())
    elif isinstance(value, tuple | list):
        fields = getattr(value, "_fields", None) or [None] * len(value)
        for position, (field, item) in enumerate(zip(fields, value, strict=True)):
            yield (f"[{position}]", (position,), item) if field is None else (f".{field}", (field, position), item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{f.name}", (f.name,), getattr(value, f.name)) for f in dataclasses.fields(value) if f.init)
