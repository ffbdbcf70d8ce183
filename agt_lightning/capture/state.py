"""What Python code can branch on besides tensors of the batch: attributes, as values that can be compared later."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sized
from contextlib import suppress
from functools import cache
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device, torch.Size, range)

_BY_IDENTITY = (type, BuiltinFunctionType, ModuleType, torch.Generator)
"""Objects whose inside is code, or is compared elsewhere."""

_DEPTH = 6

_LONGEST = 4096
"""Entries up to which a container is compared entry by entry. A longer one is a table of data, not a setting."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Same:
    """An object that equals itself alone, and is kept alive, so that its address is not used again.

    Example:
        >>> a, b = [1], [1]
        >>> Same(a) == Same(a), Same(a) == Same(b)
        (True, False)
    """

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def attributes(module: nn.Module) -> Mapping[str, object]:
    """Return the attributes of a module itself, without parameters, buffers, submodules and what every module has.

    Example:
        >>> dict(attributes(nn.Dropout(0.5)))
        {'p': 0.5, 'inplace': False}
    """
    return {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}


class StateReader:
    """A reader of a module's attributes, which turns each into a token: a value that changes if the attribute does.

    Numbers, strings and containers of them are compared by value; tensors by identity and by the number of changes in
    place; functions by their closures and defaults; objects of the user's classes by what `pickle` would keep of them;
    modules and objects of libraries by identity. The module's own parameters, buffers and parts are not followed.

    Args:
        module: owner of parameters and buffers that may change.

    Example:
        >>> reader = StateReader(nn.Linear(1, 1))
        >>> reader.token({"beta": 0.1}) == reader.token({"beta": 0.1}), reader.token(1) == reader.token(True)
        (True, False)
        >>> scale = torch.ones(())
        >>> before = reader.token(scale)
        >>> before == reader.token(scale), before == reader.token(scale.mul_(2))
        (True, False)
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        parts = (*module.modules(), *module.parameters(), *module.buffers())
        self._own = frozenset(id(part) for part in parts)

    def of_parts(self) -> Hashable:
        """Return a token of the modes of all parts, and of the attributes of all parts but the module itself."""
        modes = tuple(part.training for part in self.module.modules())
        inner = (part for part in self.module.modules() if part is not self.module)
        return modes, tuple(self._named(attributes(part)) for part in inner)

    def of_attributes(self) -> Mapping[str, Hashable]:
        """Return a token of each attribute of the module itself, by name."""
        return {name: self.token(value) for name, value in attributes(self.module).items()}

    def token(self, value: object, depth: int = _DEPTH) -> Hashable:
        """Return a hashable value that changes if code that reads ``value`` could find something else."""
        if isinstance(value, float) and value != value:
            return type(value), "nan"
        if isinstance(value, _PLAIN):
            return type(value), value
        if isinstance(value, np.generic | np.ndarray):
            content = value.tobytes() if value.size <= _LONGEST else Same(value)
            return type(value), str(value.dtype), value.shape, content
        if depth == 0 or id(value) in self._own or isinstance(value, _BY_IDENTITY):
            return Same(value)
        if isinstance(value, Tensor):
            return Same(value), 0 if value.is_inference() else value._version
        if isinstance(value, nn.Module):
            return self._of_module(value, depth - 1)
        if isinstance(value, FunctionType):
            return Same(value), tuple(self.token(held, depth - 1) for held in _held(value))
        if isinstance(value, MethodType):
            return Same(value.__func__), self.token(value.__self__, depth - 1)
        return self._of_container(value, depth - 1)

    def _of_container(self, value: object, depth: int) -> Hashable:
        if isinstance(value, Mapping):
            return _entries(
                value, lambda: tuple((self.token(k, depth), self.token(v, depth)) for k, v in value.items())
            )
        if isinstance(value, list | tuple | deque):
            return _entries(value, lambda: tuple(self.token(item, depth) for item in value))
        if isinstance(value, set | frozenset):
            return _entries(value, lambda: frozenset(self.token(item, depth) for item in value))
        return Same(value) if _of_a_library(type(value).__module__) else self._pickled(value, depth)

    def _of_module(self, module: nn.Module, depth: int) -> Hashable:
        """Return a token of a module that is no part of this one, such as a teacher in a list."""
        tensors = tuple(self.token(tensor) for tensor in (*module.parameters(), *module.buffers()))
        inner = tuple(self._named(attributes(part), depth) for part in module.modules())
        return Same(module), module.training, tensors, inner

    def _named(self, named: Mapping[str, object], depth: int = _DEPTH) -> Hashable:
        return tuple((name, self.token(value, depth)) for name, value in named.items())

    def _pickled(self, value: object, depth: int) -> Hashable:
        """Return the token of what pickling would keep of an object; the object itself if it cannot be pickled."""
        try:
            parts = value.__reduce_ex__(2)
        except Exception:  # whatever a foreign `__reduce_ex__` raises, the object is then followed by identity
            return Same(value)
        if isinstance(parts, str):
            return Same(value)
        lists = (list(part) if at > 2 and part is not None else part for at, part in enumerate(parts))
        return type(value), tuple(self.token(part, depth) for part in lists)


def _entries(value: Sized, tokens: Callable[[], Hashable]) -> Hashable:
    return type(value), tokens() if len(value) <= _LONGEST else len(value)


def _held(function: FunctionType) -> Iterator[object]:
    """Yield what a function keeps between its calls: defaults and the variables that it closes over."""
    yield from function.__defaults__ or ()
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a variable that is not bound yet
            yield cell.cell_contents


@cache
def _of_a_library(module: str) -> bool:
    """Return whether a module belongs to an installed package, rather than to Python or to the user's own code."""
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names or package == "__main__":
        return False
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return package == __name__.partition(".")[0] or "site-packages" in file or "dist-packages" in file
