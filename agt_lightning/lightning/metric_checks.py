"""Checks of data by `torchmetrics.functional` as branches of a recording.

Each of these checks either returns nothing or raises an error. What they look at, such as the number of different
labels, would be many numbers to follow; that they pass or raise is all that matters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from types import FunctionType
from typing import Any

from agt_lightning.capture.recording import branch, current

_CHECK = "_tensor_validation"
"""End of the names of these functions."""

_ERRORS = (RuntimeError, ValueError)
"""What they raise."""


@contextmanager
def checks_as_branches() -> Iterator[None]:
    """Let the checks of data come out both ways while code is recorded; elsewhere they are as they were."""
    found = _checks(sum(name.startswith("torchmetrics.") for name in sys.modules))
    for module, name, check in found:
        setattr(module, name, _as_branches(check))
    try:
        yield
    finally:
        for module, name, check in found:
            setattr(module, name, check)


@cache
def _checks(modules: int) -> list[tuple[object, str, FunctionType]]:
    """Return all names of checks of data, found again whenever more of the library is imported."""
    return [
        (module, name, value)
        for file, module in list(sys.modules.items())
        if file.startswith("torchmetrics.functional")
        for name, value in list(vars(module).items())
        if name.endswith(_CHECK) and isinstance(value, FunctionType) and value.__annotations__.get("return", 0) is None
    ]


def _as_branches(check: FunctionType) -> Callable[..., None]:
    @wraps(check)
    def checked(*args: Any, **kwargs: Any) -> None:
        if current() is None:
            check(*args, **kwargs)
            return
        for error in _ERRORS:
            if branch(f"`{check.__name__}`"):
                raise error(f"`{check.__name__}` refuses the data.")

    return checked
