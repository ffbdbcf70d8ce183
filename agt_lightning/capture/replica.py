"""Copies of a module on which its code can run without side effects on the module itself."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import CellType, FunctionType, MethodType
from typing import TypeVar

from torch import Tensor, nn

from agt_lightning.errors import CaptureError

M = TypeVar("M", bound=nn.Module)


def replica(module: M) -> M:
    """Return a deep copy that shares the parameters, so it needs no memory for them.

    Raises:
        CaptureError: if some attribute cannot be copied.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> copied = replica(layer)
        >>> copied is layer, copied.weight is layer.weight
        (False, True)
    """
    return _copied(module, {id(parameter): parameter for parameter in module.parameters()})


def independent_replica(module: M, memo: dict[int, object] | None = None) -> M:
    """Return a deep copy with parameters of its own, which have no gradients and no hooks.

    Args:
        module: to copy.
        memo: as of `copy.deepcopy`: what replaces objects, by their identity; the copies are added to it.

    Raises:
        CaptureError: if some attribute cannot be copied.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> copied = independent_replica(layer)
        >>> copied.weight is layer.weight, bool((copied.weight == layer.weight).all())
        (False, True)
    """
    return _copied(module, {} if memo is None else memo)


def _copied(module: M, memo: dict[int, object]) -> M:
    """Return a deep copy in which the objects of ``memo``, by their identity, are replaced by its values."""
    for part in module.modules():
        for value in vars(part).values():
            memo |= {id(tensor): tensor.detach() for tensor in _intermediate_results(value)}
    rebound = _functions_on(module, memo)
    try:
        copied = copy.deepcopy(module, memo)
    except Exception as error:
        raise CaptureError(
            f"Expected a module that can be copied, but got {type(error).__name__}: {error}\nTraining steps run on a "
            "copy to be recorded. Remove the attribute that cannot be copied, or give the module a `__deepcopy__`."
        ) from error
    for cell, held in rebound:
        cell.cell_contents = MethodType(held.__func__, copied) if isinstance(held, MethodType) else copied
    return copied


def _functions_on(module: nn.Module, memo: dict[int, object]) -> list[tuple[CellType, object]]:
    """Let functions that close over a module, or a method of it, be copied to close over its copy.

    Such are ``lambda: self.current_epoch``, and what decorates a method on the object.

    Args:
        module: about to be copied; functions among its attributes and those of its parts are looked at.
        memo: to which their copies are added.

    Returns:
        Empty cells of the copies, for the copy of the module or of its method, each with what the cell held.
    """
    cells: list[tuple[CellType, object]] = []
    for function in {id(v): v for part in module.modules() for v in vars(part).values()}.values():
        if not isinstance(function, FunctionType) or id(function) in memo:
            continue
        closure = tuple(CellType() if _holds(cell, module) else cell for cell in function.__closure__ or ())
        if any(new is not old for new, old in zip(closure, function.__closure__ or (), strict=True)):
            pairs = zip(closure, function.__closure__ or (), strict=True)
            cells += [(new, old.cell_contents) for new, old in pairs if new is not old]
            made = FunctionType(
                function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
            )
            made.__kwdefaults__ = function.__kwdefaults__
            memo[id(function)] = made
    return cells


def _holds(cell: CellType, module: nn.Module) -> bool:
    """Return whether a variable is a module, or a method of it."""
    with suppress(ValueError):  # a variable that is not bound yet
        held = cell.cell_contents
        return held is module or isinstance(held, MethodType) and held.__self__ is module
    return False


def _intermediate_results(value: object) -> Iterator[Tensor]:
    """Yield tensors with a gradient function, such as losses kept for logging; `copy.deepcopy` refuses them."""
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _intermediate_results(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _intermediate_results(item)
