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
from torchmetrics import Metric, MetricCollection

_PLAIN = (int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device, torch.Size, range)

_SETTINGS = frozenset((bool, int, float, str))

_BY_IDENTITY = (type, BuiltinFunctionType, ModuleType, torch.Generator)
"""Objects whose inside is code, or is compared elsewhere."""

_DEPTH = 24
"""Levels of containers and objects inside each other that are followed."""

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


def setting_of_class(kind: type, name: str) -> object:
    """Return a class attribute that is a plain value, such as a number or a table; None for methods and properties.

    Example:
        >>> setting_of_class(nn.Linear, "in_features"), setting_of_class(nn.Linear, "forward") is None
        (None, True)
    """
    value = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
    return value if isinstance(value, (*_PLAIN, Mapping, list, tuple, set, np.ndarray, Tensor)) else None


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
        self._seen: dict[int, object] = {}  # of the token that is being made, by identity, in order

    def of_parts(self) -> Hashable:
        """Return a token of classes, modes and hooks of all parts, and of the attributes of all but the module itself.

        Metrics are left out: they change with each batch, and recordings have stand-ins for them.
        """
        parts = list(_without_metrics(self.module))
        kinds = tuple((type(part), part.training, self._hooks(part)) for part in parts)
        return kinds, tuple(self._attributes(part) for part in parts if part is not self.module)

    def of_attributes(self) -> Mapping[str, Hashable]:
        """Return a token of each attribute of the module itself, by name."""
        return {name: self.token(value) for name, value in attributes(self.module).items()}

    def token(self, value: object) -> Hashable:
        """Return a hashable value that changes if code that reads ``value`` could find something else."""
        self._seen = {}
        return self._token(value, _DEPTH)

    def _token(self, value: object, depth: int) -> Hashable:
        if isinstance(value, float):
            return type(value), value.hex()  # NaN equals itself, and zero not its negative
        if isinstance(value, _PLAIN):
            return type(value), value
        if isinstance(value, np.generic | np.ndarray):
            content = value.tobytes() if value.size <= _LONGEST else Same(value)
            return type(value), str(value.dtype), value.shape, content
        if depth == 0 or id(value) in self._own or isinstance(value, _BY_IDENTITY):
            return Same(value)
        if id(value) in self._seen:
            return "again", list(self._seen).index(id(value))
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            return Same(value), 0 if value.is_inference() else value._version
        if isinstance(value, nn.Module):
            return self._of_module(value, depth - 1)
        if isinstance(value, FunctionType):
            return Same(value), tuple(self._token(held, depth - 1) for held in _held(value))
        if isinstance(value, MethodType):
            return Same(value.__func__), self._token(value.__self__, depth - 1)
        return self._of_container(value, depth - 1)

    def _of_container(self, value: object, depth: int) -> Hashable:
        if isinstance(value, Mapping):
            return _entries(
                value, lambda: tuple((self._token(k, depth), self._token(v, depth)) for k, v in value.items())
            )
        if isinstance(value, list | tuple | deque):
            return _entries(value, lambda: tuple(self._token(item, depth) for item in value))
        if isinstance(value, set | frozenset):
            return _entries(value, lambda: frozenset(self._token(item, depth) for item in value))
        if of_a_library(type(value).__module__):
            return Same(value), _settings(value)
        return self._pickled(value, depth)

    def _of_module(self, module: nn.Module, depth: int) -> Hashable:
        """Return a token of a module that is no part of this one, such as a teacher in a list."""
        tensors = tuple(self._token(tensor, depth) for tensor in (*module.parameters(), *module.buffers()))
        inner = tuple(self._named(attributes(part), depth) for part in module.modules())
        return Same(module), module.training, tensors, inner

    def _attributes(self, part: nn.Module) -> Hashable:
        return tuple((name, self.token(value)) for name, value in attributes(part).items())

    def _hooks(self, part: nn.Module) -> Hashable:
        hooks = (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
        return tuple(self.token(hook) for hook in hooks)

    def _named(self, named: Mapping[str, object], depth: int) -> Hashable:
        return tuple((name, self._token(value, depth)) for name, value in named.items())

    def _pickled(self, value: object, depth: int) -> Hashable:
        """Return the token of what pickling would keep of an object; the object itself if it cannot be pickled."""
        try:
            parts = value.__reduce_ex__(2)
        except Exception:  # whatever a foreign `__reduce_ex__` raises, the object is then followed by identity
            return Same(value)
        if isinstance(parts, str):
            return Same(value)
        lists = (list(part) if at > 2 and part is not None else part for at, part in enumerate(parts))
        return type(value), tuple(self._token(part, depth) for part in lists)


def _without_metrics(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and its parts, without metrics and their parts."""
    metrics = [part for part in module.modules() if isinstance(part, Metric | MetricCollection)]
    left_out = {id(inner) for metric in metrics for inner in metric.modules()}
    return (part for part in module.modules() if id(part) not in left_out)


def _entries(value: Sized, tokens: Callable[[], Hashable]) -> Hashable:
    return type(value), tokens() if len(value) <= _LONGEST else len(value)


def _held(function: FunctionType) -> Iterator[object]:
    """Yield what a function keeps between its calls: defaults and the variables that it closes over."""
    yield from function.__defaults__ or ()
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a variable that is not bound yet
            yield cell.cell_contents


def _settings(value: object) -> Hashable:
    """Return the numbers and strings among the attributes of an object, such as those of a library's configuration."""
    held = getattr(value, "__dict__", {})
    return tuple((name, type(item), item) for name, item in held.items() if type(item) in _SETTINGS and item == item)


@cache
def of_a_library(module: str) -> bool:
    """Return whether a module belongs to an installed package, rather than to Python or to the user's own code."""
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names or package == "__main__":
        return False
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return package == __name__.partition(".")[0] or "site-packages" in file or "dist-packages" in file
