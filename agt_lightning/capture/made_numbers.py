"""Tensors that code makes of sizes and plain numbers alone, such as causal masks: Python may read what is in them.

``nn.TransformerEncoder`` compares its mask with the causal one, and passes on which it is. Where the code has made the
mask in the same step, of zeros, ones and infinities, the outcome is the same in every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

_EXACT = (0, 1, math.inf, -math.inf)
"""Numbers that every floating point type has."""

_FILLS: Mapping[object, float | None] = {torch.full: None, torch.ones: 1.0, torch.zeros: 0.0}

_TRIANGLES: Mapping[object, Callable[..., Array]] = {
    torch.triu: np.triu,
    torch.tril: np.tril,
    Tensor.triu: np.triu,
    Tensor.tril: np.tril,
}
_EQUALITIES = (torch.eq, Tensor.eq, Tensor.__eq__)
_ALL = (torch.all, Tensor.all)


@dataclass
class MadeNumbers:
    """The tensors of one recording that are made of sizes and plain numbers, each with its numbers.

    Whatever changes such a tensor in place, also by a view, counts up the version that they share.
    """

    _made: dict[int, tuple[Tensor, int, Array]] = field(default_factory=dict)

    def follow(self, func: object, args: Sequence[Any], kwargs: Mapping[str, Any], result: object) -> None:
        """Remember the result of a call of torch if it is made of known numbers alone."""
        if func == _DATA and args:
            self._made.pop(id(args[0]), None)  # changes by it are not counted
        if not isinstance(result, Tensor) or result.is_inference():  # which counts no changes
            return
        numbers = self._numbers(func, args, kwargs)
        if numbers is not None and numbers.shape == tuple(result.shape):
            self._made[id(result)] = (result, result._version, numbers)

    def value_of(self, tensor: object) -> bool | None:
        """Return a single boolean if it is known, else None."""
        numbers = self._known(tensor)
        return bool(numbers) if numbers is not None and numbers.size == 1 and numbers.dtype == np.bool_ else None

    def _known(self, tensor: object) -> Array | None:
        made = self._made.get(id(tensor))
        return made[2] if made is not None and made[1] == made[0]._version else None

    def _numbers(self, func: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Array | None:
        if kwargs.get("out") is not None:
            return None
        if func in _FILLS:
            return _filled(args, kwargs, _FILLS[func])
        known = [self._known(value) for value in args if isinstance(value, Tensor)]
        first = known[0] if known and isinstance(args[0], Tensor) else None
        if first is None or any(each is None for each in known):
            return None
        if func in _TRIANGLES and len(args) <= 2:
            return _TRIANGLES[func](first, args[1] if len(args) == 2 else kwargs.get("diagonal", 0))
        if func in _EQUALITIES and len(known) == len(args) == 2:
            return np.asarray(first == known[1])
        return np.asarray(first.all()) if func in _ALL and len(args) == 1 and not kwargs else None


_DATA = vars(torch._C.TensorBase)["data"].__get__


def _filled(args: Sequence[Any], kwargs: Mapping[str, Any], number: float | None) -> Array | None:
    """Return the numbers of a tensor that is filled with one that is exact in its type."""
    size: Any = args
    if number is None and len(args) == 2:
        size, number = args
    elif len(args) == 1 and isinstance(args[0], list | tuple):
        size = args[0]
    if kwargs.get("dtype") is torch.bool or type(number) not in (int, float) or number not in _EXACT:
        return None
    return np.full(tuple(size), float(number)) if all(type(each) is int for each in size) else None
