"""What the user's code writes to its module, compared between recordings: memory by which data reach later steps.

A branch, or a number, that leaves this step's loss alone can still be written to something that a later step reads.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from zlib import crc32

import numpy as np
from torch import Tensor, nn

from agt_lightning.capture.opaque import Unread
from agt_lightning.capture.state import of_a_library
from agt_lightning.capture.traces import namespaces
from agt_lightning.capture.withheld import Withheld

Name = tuple[str, str]
"""Of an attribute: the path of its part, and its own name."""

State = Mapping[Name, object]
"""Attributes as comparable values."""

OUTSIDE = "outside of the module"
"""In place of the path of a part."""

_MANAGED = frozenset({"_parameters", "_modules", "_buffers", "_trainer", "_fabric", "_current_fx_name"})
"""Attributes by which libraries manage a module; parts and buffers are looked at one by one."""

_DEPTH = 12

_LONGEST = 4096
"""Entries up to which a container is compared entry by entry. A longer one is a table of data, not a setting."""

_LARGEST = 2**24
"""Bytes up to which an array is compared."""

_STAND_INS = frozenset({"RealStandIn", "IntegerStandIn", "TextStandIn", "ArrayStandIn"})
"""Kinds of values that are made of data."""

_WRITTEN = "written tensor"
"""Kind of a tensor that was made, or changed in place, by the code."""

_NUMBERS = frozenset({"int", "float", "Tick", "RealStandIn", "IntegerStandIn"})

_BY_IDENTITY = frozenset({"bool", "Enum", "function"})
"""Kinds of values that code compares by ``is``, which no stand-in can see."""

_NOTHING = ("NoneType", "None")


class Watch:
    """The attributes of a module and its parts, of what is added to them, and the global variables of their files.

    Args:
        module: before its code runs.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._known: dict[int, tuple[Tensor, int]] = {}
        self._seen: dict[int, object] = {}
        self._buffers = dict(module.named_buffers())
        self._parts = set(module.modules())
        self._added: list[Mapping[str, object]] = []
        self._first = True
        self.before: State = self._state()
        self._first = False

    def add(self, space: Mapping[str, object]) -> None:
        """Look at other attributes as well, such as those of a data module, before the user's code runs."""
        self._first = True
        self.before = _both(self.before, self._outside(space))
        self._first = False
        self._added.append(space)

    def after(self) -> State:
        """Return the attributes as they are now, where tensors differ that were made or changed since."""
        return self._state()

    def replaced_buffers(self) -> frozenset[str]:
        """Return the names of the buffers that are other tensors now."""
        return frozenset(name for name, each in self._module.named_buffers() if self._buffers.get(name) is not each)

    def _state(self) -> State:
        state: dict[Name, object] = {}
        for path, part in self._module.named_modules():
            state |= {(path, name): self._token(value) for name, value in vars(part).items() if name not in _MANAGED}
            state |= {(path, name): self._part(child) for name, child in part.named_children()}
        for space in [*namespaces(self._module), *self._added]:
            state = _both(state, self._outside(space))
        return state

    def _outside(self, space: Mapping[str, object]) -> State:
        return {(OUTSIDE, name): self._token(value) for name, value in space.items() if name[:2] != "__"}

    def _part(self, part: nn.Module) -> object:
        return "part" if part in self._parts else "other part", type(part).__qualname__

    def _token(self, value: object) -> object:
        self._seen = {}
        return self._plain(value, _DEPTH)

    def _plain(self, value: object, depth: int) -> object:
        kind = type(value).__name__
        if issubclass(type(value), Withheld | Unread):
            return kind, ""
        if isinstance(value, Enum):
            return "Enum", (kind, value.name)
        for base in (bool, int, float, complex, str, bytes):
            if isinstance(value, base):
                return kind, base.__repr__(value)  # not of a stand-in, which cannot be compared
        if value is None:
            return _NOTHING
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, FunctionType | BuiltinFunctionType | type | ModuleType):
            return "function", (getattr(value, "__qualname__", value.__name__), id(getattr(value, "__code__", value)))
        if id(value) in self._seen or depth == 0:
            return kind, "again"
        self._seen[id(value)] = value
        return kind, self._content(value, depth - 1)

    def _tensor(self, tensor: Tensor) -> object:
        version = 0 if tensor.is_inference() else tensor._version
        if self._first:
            self._known.setdefault(id(tensor), (tensor, version))
        kept = self._known.get(id(tensor)) == (tensor, version) if id(tensor) in self._known else False
        return "Tensor" if kept else _WRITTEN, tuple(tensor.shape)

    def _content(self, value: object, depth: int) -> object:
        if isinstance(value, np.ndarray):
            if value.dtype == object and value.size <= _LONGEST:
                return value.shape, [self._plain(item, depth) for item in value.ravel().tolist()]
            return str(value.dtype), value.shape, crc32(value.tobytes()) if value.nbytes <= _LARGEST else 0
        if isinstance(value, Sized) and len(value) > _LONGEST:
            return len(value)
        if isinstance(value, Mapping):
            return [(self._plain(key, depth), self._plain(item, depth)) for key, item in value.items()]
        if isinstance(value, list | tuple | deque):
            return [self._plain(item, depth) for item in value]
        if isinstance(value, set | frozenset):
            return sorted(repr(self._plain(item, depth)) for item in value)
        if isinstance(value, bytearray | array):
            return bytes(value)
        if isinstance(value, partial):
            return [self._plain(part, depth) for part in (value.func, value.args, value.keywords)]
        if isinstance(value, MethodType):
            return [self._plain(value.__func__, depth), self._plain(value.__self__, depth)]
        if of_a_library(type(value).__module__) and not isinstance(value, nn.Module):
            return ""
        return [(name, self._plain(item, depth)) for name, item in _attributes(value) if name not in _MANAGED]


def _both(state: State, more: State) -> dict[Name, object]:
    """Return both; an attribute that several objects have under one name changes if one of them does."""
    shared = {name: ("several", [state[name], more[name]]) for name in state.keys() & more.keys()}
    return {**state, **more, **shared}


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    """Yield the attributes that an object holds, also in slots, and those of the parts of a module."""
    for part in value.modules() if isinstance(value, nn.Module) else (value,):
        yield from getattr(part, "__dict__", {}).items()
    slots = [name for kind in type(value).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    yield from ((name, getattr(value, name)) for name in slots if name[:2] != "__" and hasattr(value, name))


def _names(slots: object) -> Sequence[str]:
    return (slots,) if isinstance(slots, str) else tuple(slots)  # type: ignore[arg-type]


def changes(before: State, after: State) -> frozenset[Name]:
    """Return the attributes that differ, or that one of both lacks."""
    missing = object()
    return frozenset(name for name in {**before, **after} if before.get(name, missing) != after.get(name, missing))


def written_by_data(before: Sequence[State], after: Sequence[State]) -> dict[Name, list[object]]:
    """Return the attributes to which the code writes what can come from data, with all their values.

    These are not the same after all recordings, or hold numbers of data, or tensors that the code has made.

    Args:
        before: the attributes before each recording.
        after: those after it.
    """
    changed = frozenset[Name]().union(*map(changes, before, after))
    states = [*before, *after]
    return {
        name: [state[name] for state in states if name in state]
        for name in changed
        if any(state.get(name) != after[0].get(name) for state in after)
        or any(_holds(state.get(name), lambda kind: kind in _STAND_INS or kind == _WRITTEN) for state in after)
    }


def are_numbers(tokens: Sequence[object]) -> bool:
    """Return whether all values of an attribute are numbers."""
    return all(isinstance(token, tuple) and token[0] in _NUMBERS for token in tokens)


def are_real(tokens: Sequence[object]) -> bool:
    """Return whether some of the numbers are no integers."""
    return any(isinstance(token, tuple) and token[0] in ("float", "RealStandIn") for token in tokens)


def are_tensors(tokens: Sequence[object]) -> bool:
    """Return whether all values of an attribute are tensors of one shape."""
    kinds = {token[0] for token in tokens if isinstance(token, tuple)}
    return kinds <= {"Tensor", _WRITTEN} and len({token[1] for token in tokens if isinstance(token, tuple)}) == 1


def are_compared_by_identity(tokens: Sequence[object]) -> bool:
    """Return whether code can ask by ``is`` which of its values an attribute has."""
    return tokens[0] != _NOTHING in tokens or any(_holds(token, _BY_IDENTITY.__contains__) for token in tokens)


def _holds(token: object, asked: Callable[[str], bool]) -> bool:
    """Return whether a comparable value has one of some kinds inside of it."""
    if isinstance(token, tuple) and len(token) == 2 and isinstance(token[0], str):
        return asked(token[0]) or _holds(token[1], asked)
    return isinstance(token, list | tuple) and any(_holds(item, asked) for item in token)
