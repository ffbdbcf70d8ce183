"""Undoing of what a recording leaves outside of the module: random states, variables of the user's files, caches."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import _lru_cache_wrapper
from types import FunctionType

import numpy as np
import torch
from torch import nn

from agt_lightning.capture.source import LIGHTNING

_FOREIGN = ("torch", *LIGHTNING, "torchmetrics", "agt_lightning", "builtins", "typing")


@contextmanager
def no_traces(module: nn.Module) -> Iterator[None]:
    """Put back random states and global variables, so that training finds none of a recording's tensors in them.

    Caches of functions (`functools.lru_cache`) are emptied before and after: what they hold is computed again.

    Args:
        module: whose classes' files have the variables.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    undo = [_undo(space) for space in namespaces(module)]
    _empty_caches(module)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        for put_back in undo:
            put_back()
        _empty_caches(module)


def namespaces(module: nn.Module) -> list[dict[str, object]]:
    """Return the global variables of the files that define the classes of a module and their methods."""
    kinds = {kind for part in module.modules() for kind in type(part).__mro__}
    spaces = [vars(sys.modules[kind.__module__]) for kind in kinds if kind.__module__ in sys.modules]
    spaces += [value.__globals__ for kind in kinds for value in vars(kind).values() if isinstance(value, FunctionType)]
    own = {id(space): space for space in spaces if str(space.get("__name__")).split(".")[0] not in _FOREIGN}
    return list(own.values())


def _empty_caches(module: nn.Module) -> None:
    """Empty the caches of the functions of a module's files and of its classes' methods."""
    kinds = {kind for part in module.modules() for kind in type(part).__mro__}
    for space in [*namespaces(module), *map(vars, kinds)]:
        for value in list(space.values()):
            if isinstance(value, _lru_cache_wrapper):
                value.cache_clear()


def _undo(space: dict[str, object]) -> Callable[[], None]:
    """Return a function that puts back variables as they are now, and the contents of those that are containers."""
    variables = {name: value for name, value in space.items() if not name.startswith("__")}
    contents = [put_back for value in variables.values() if (put_back := _content(value)) is not None]

    def undo() -> None:
        for name in [name for name in space if not name.startswith("__") and name not in variables]:
            del space[name]
        space.update({name: value for name, value in variables.items() if space.get(name) is not value})
        for put_back in contents:
            put_back()

    return undo


def _content(value: object) -> Callable[[], None] | None:
    """Return a function that puts back the content of a container of Python's; None for anything else."""
    if type(value) in (list, deque):
        return _refilled(value, list(value), "extend")  # type: ignore[call-overload]
    if type(value) in (dict, set):
        return _refilled(value, value.copy(), "update")  # type: ignore[attr-defined]
    return None


def _refilled(container: object, content: object, fill: str) -> Callable[[], None]:
    def put_back() -> None:
        if _changed(container, content):
            container.clear()  # type: ignore[attr-defined]
            getattr(container, fill)(content)

    return put_back


def _changed(container: object, content: object) -> bool:
    """Return whether other objects are in a container; objects are not compared by value, since they can be tensors."""
    return _identities(container) != _identities(content)


def _identities(container: object) -> list[object]:
    if isinstance(container, Mapping):
        return [(id(key), id(item)) for key, item in container.items()]
    return [id(item) for item in container]  # type: ignore[attr-defined]
