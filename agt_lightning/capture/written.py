"""What the user's code writes to its module, compared between paths: memory by which a branch reaches later steps.

A branch that leaves this step's loss alone can still write something that a later step reads. What is written on some
paths only must not be looked at by the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from torch import Tensor, nn

from agt_lightning.capture.traces import namespaces
from agt_lightning.capture.withheld import Unknown

State = Mapping[tuple[str, str], object]
"""Attributes as comparable values, by path of the part and name."""

_MANAGED = frozenset({"_parameters", "_modules", "_buffers", "_trainer", "_fabric", "_current_fx_name"})
"""Attributes by which libraries manage a module; buffers are compared as tensors of a graph."""

_DEPTH = 4

_OUTSIDE = "outside of the module"
"""In place of the path of a part."""


def state_of(module: nn.Module) -> dict[tuple[str, str], object]:
    """Return the attributes of a module and its parts, of its data module, and the global variables of their files.

    Tensors count by their shapes alone.

    A tensor that is kept is one of data on clean data as well, which other checks see.
    """
    state = {
        (path, name): _plain(value, _DEPTH)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if name not in _MANAGED
    }
    data = getattr(vars(module).get("_trainer"), "datamodule", None)
    outside = [vars(data)] if hasattr(data, "__dict__") else []
    for space in [*namespaces(module), *outside]:
        state |= {(_OUTSIDE, name): _plain(value, _DEPTH) for name, value in space.items() if name[:2] != "__"}
    return state


def _plain(value: object, depth: int) -> object:
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        return type(value).__name__, str(value)
    if isinstance(value, Tensor):
        return "Tensor", tuple(value.shape)
    if isinstance(value, nn.Module | ModuleType) or callable(value) or depth == 0:
        return type(value).__name__
    if isinstance(value, Mapping):
        return [(_plain(key, depth - 1), _plain(item, depth - 1)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(str(_plain(item, depth - 1)) for item in value)
    return type(value).__name__, [
        (name, _plain(item, depth - 1)) for name, item in getattr(value, "__dict__", {}).items()
    ]


def changes(before: State, after: State) -> frozenset[tuple[str, str]]:
    """Return the attributes that differ, or that one of both lacks."""
    missing = object()
    return frozenset(name for name in {**before, **after} if before.get(name, missing) != after.get(name, missing))


def withhold(module: nn.Module, names: frozenset[tuple[str, str]], looks: list[str]) -> None:
    """Put stand-ins in place of attributes, which the code may write to, but not look at.

    What lies outside of the module has none, and counts as looked at.

    Args:
        module: a replica.
        names: of the attributes, with the paths of their parts.
        looks: to which the name of each attribute is appended that the code looks at.
    """
    for path, name in names:
        if path == _OUTSIDE:
            looks.append(name)
            continue
        vars(module.get_submodule(path))[name] = Unknown(f"`{name}`", lambda name=name: looks.append(name))  # type: ignore[misc]
