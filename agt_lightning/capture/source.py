"""The line of user code behind a captured call, for messages."""

import contextlib
import linecache
import logging
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numpy
import torch

F = TypeVar("F", bound=Callable[..., object])

LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")
"""Top-level names of Lightning: of `lightning`, and of its copy `pytorch_lightning` with what that imports."""

_INTERNAL = tuple(str(Path(file).parent) + "/" for file in (torch.__file__, str(Path(__file__).parent)))
_LIBRARIES = tuple(str(Path(str(library.__file__)).parent) + "/" for library in (logging, numpy))
_NOT_USER = (*_INTERNAL, contextlib.__file__, *_LIBRARIES, "<frozen")


def as_forward(function: F) -> F:
    """Return the same function or method under the name ``forward``.

    `torch.export` records source lines only of frames with that name, but users write `training_step`.

    Example:
        >>> def double(x):
        ...     return 2 * x
        >>> as_forward(double)(3), as_forward(double).__code__.co_name
        (6, 'forward')
    """
    if isinstance(function, types.MethodType):
        return cast(F, types.MethodType(as_forward(function.__func__), function.__self__))
    if not isinstance(function, types.FunctionType):
        return function
    code = function.__code__.replace(co_name="forward")
    renamed = types.FunctionType(code, function.__globals__, "forward", function.__defaults__, function.__closure__)
    renamed.__kwdefaults__ = function.__kwdefaults__
    return cast(F, renamed)


def source_of(stack_trace: str | None) -> str:
    """Return the innermost line outside torch and this package: ``file.py:12 `code` ``."""
    lines = (stack_trace or "").splitlines()
    frames = [
        (line.strip(), lines[number + 1].strip())
        for number, line in enumerate(lines[:-1])
        if line.strip().startswith("File ") and not line.strip().removeprefix('File "').startswith(_INTERNAL)
    ]
    if not frames:
        return "unknown line"
    location, code = frames[-1]
    file, line, *_ = location.removeprefix("File ").split(", ")
    return f"{Path(file.strip(chr(34))).name}:{line.removeprefix('line ')} `{code}`"


def is_internal(frame: types.FrameType) -> bool:
    """Return whether a frame runs code of torch or of this package."""
    return frame.f_code.co_filename.startswith(_INTERNAL)


def is_of_user(frame: types.FrameType) -> bool:
    """Return whether a frame runs code outside torch, Lightning, this package and the standard library's context."""
    return not (frame.f_code.co_filename.startswith(_NOT_USER) or _top(frame) in LIGHTNING)


def _top(frame: types.FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def current_line() -> str:
    """Return the innermost running line outside torch and the standard library: ``file.py:12 `code` ``."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_USER):
        frame = frame.f_back
    if frame is None:
        return "unknown line"
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(file).name}:{line} `{linecache.getline(file, line).strip()}`"


def line_of(error: BaseException) -> str:
    """Return the innermost line outside torch and the standard library that an error passed through."""
    frames = [item for item in traceback.extract_tb(error.__traceback__) if not item.filename.startswith(_NOT_USER)]
    if not frames:
        return "unknown line"
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} `{(frames[-1].line or '').strip()}`"
