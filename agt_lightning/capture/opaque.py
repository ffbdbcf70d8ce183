"""Batch entries that no graph follows: the user's code may pass them on, but not read them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from agt_lightning.capture.batch import Rebuild
from agt_lightning.capture.recording import refuse
from agt_lightning.capture.source import current_line
from agt_lightning.capture.withheld import Withheld

_NUMBERS = (bool, int, float, complex)
_PLAIN = (*_NUMBERS, str, bytes)


def guarded(rebuild: Rebuild, *, whole_samples: bool) -> Rebuild:
    """Return the function that rebuilds a batch, with stand-ins for the entries that a graph cannot follow.

    Arrays and other objects would be constants of the graph although they can hold data, and so would lists with a
    number, or numbers, for each sample. Other numbers, and strings, are constants, which is right if no run can change
    them.

    Args:
        rebuild: makes a batch of tensors.
        whole_samples: whether an adversary replaces whole samples, with their numbers and strings.
    """

    def rebuilt(tensors: Sequence[Tensor]) -> object:
        sizes = frozenset(len(tensor) for tensor in tensors if tensor.ndim)
        return _guarded(rebuild(tensors), "", None if whole_samples else sizes)

    return rebuilt


def _is_of_numbers(value: object) -> bool:
    """Return whether a value is a number, or a list or tuple of numbers at any depth."""
    if type(value) is not Withheld and isinstance(value, list | tuple):
        return all(map(_is_of_numbers, value))
    return type(value) in _NUMBERS


def _guarded(value: object, path: str, sizes: Collection[int] | None) -> Any:
    """Return a value with stand-ins for the entries inside it that are neither tensors nor allowed constants.

    Args:
        value: a part of the batch.
        path: to it.
        sizes: lengths at which a list of numbers holds data of samples; None if no number is an allowed constant.
    """
    if type(value) is Withheld:
        return value
    if value is None or isinstance(value, Tensor | torch.Size) or (type(value) in _PLAIN and sizes is not None):
        return value
    if isinstance(value, dict):
        for key in value:
            value[key] = _guarded(value[key], f"{path}[{key!r}]", sizes)
        return value
    if isinstance(value, list) and sizes is not None and len(value) in sizes and all(map(_is_of_numbers, value)):
        return [Unread(_list_message(f"batch{path}"))] * len(value)
    if isinstance(value, tuple | list):
        items = [_guarded(item, f"{path}[{position}]", sizes) for position, item in enumerate(value)]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is None:
        return Unread(_message(value, f"batch{path}"))
    for name in fields:
        object.__setattr__(value, name, _guarded(getattr(value, name), f"{path}.{name}", sizes))
    return value


def _list_message(name: str) -> str:
    return f"reads `{name}`, a list of numbers that can be data of samples, which no graph follows. Make it a tensor."


def _message(value: object, name: str) -> str:
    if type(value) in _PLAIN:
        reason = "belongs to samples that the adversary replaces, so no bound exists"
    else:
        reason = "can hold data that no graph follows"
    return f"reads `{name}`, which is no tensor ({type(value).__name__}) and {reason}. Make it a tensor."


class Unread:
    """A stand-in that refuses everything but being passed on.

    Args:
        message: what reading it means, to follow the line that does so.
    """

    __slots__ = ("_message",)

    def __init__(self, message: str) -> None:
        object.__setattr__(self, "_message", message)

    def __getattribute__(self, name: str) -> NoReturn:
        refuse(f"{current_line()} {object.__getattribute__(self, '_message')}")


def _refuse_reading(self: Unread, *args: object) -> NoReturn:
    refuse(f"{current_line()} {object.__getattribute__(self, '_message')}")


_UNARY = "len iter next bool int float complex index hash str repr bytes reversed neg pos abs invert round trunc floor"
_OTHERS = "eq ne lt le gt ge contains getitem setitem delitem format call setattr delattr dir enter exit fspath ceil"
_ARITHMETIC = "add sub mul truediv floordiv mod divmod pow matmul and or xor lshift rshift"

for _name in f"{_UNARY} {_OTHERS} {_ARITHMETIC} r{_ARITHMETIC.replace(' ', ' r')}".split():
    setattr(Unread, f"__{_name}__", _refuse_reading)
