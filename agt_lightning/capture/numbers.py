"""Stand-ins for numbers that the user's code reads of data, such as ``loss.item()``.

A number that is printed or logged does no harm; one that reaches the loss or a branch does. So the code is recorded
several times, each time with other numbers, and all recordings must be equal. The numbers include infinities and NaN,
so that a branch at any threshold is seen. Each stand-in also refuses to be compared, so that no two thresholds can
enclose a branch between them; sums, products, functions of `math` and texts of stand-ins are stand-ins.
"""

from __future__ import annotations

import dis
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from agt_lightning.capture.recording import Recording, current, refuse_branch, refuse_conversion
from agt_lightning.capture.source import current_line
from agt_lightning.errors import CaptureError

T = TypeVar("T", bound=type)

_REALS = (0.37, math.inf, -math.inf, 30.0, -1.0, math.nan)
_INTEGERS = (1, 1000, -1000, 0, 7, 2)

PROBES = len(_REALS)
"""Number of recordings of code that reads numbers."""

_FINITE = ("isnan", "isinf", "isfinite")
_COMPARISONS = ("__bool__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__")
_CONVERSIONS = ("as_integer_ratio", "hex", "is_integer", "bit_length", "bit_count", "to_bytes")
_ARITHMETIC = tuple(
    f"__{side}{name}__" for side in ("", "r") for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
) + ("__neg__", "__pos__", "__abs__", "__round__", "__trunc__", "__floor__", "__ceil__", "__divmod__", "__rdivmod__")


def _tracked(cls: T) -> T:
    """Give a class of numbers methods that refuse comparisons and return stand-ins of arithmetic."""
    base = cls.__bases__[0]
    for name in (*_COMPARISONS, *_CONVERSIONS):
        if hasattr(base, name):
            setattr(cls, name, _refusing(name))
    for name in _ARITHMETIC:
        if hasattr(base, name):
            setattr(cls, name, _tracking(getattr(base, name)))
    return cls


def _refusing(name: str) -> Callable[..., Any]:
    def method(self: object, *args: object) -> Any:
        refuse_branch(f"`{name}` of a number that was read of a tensor")

    return method


def _tracking(operation: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: object, *args: object) -> Any:
        return stand_in(operation(self, *args))

    return method


def stand_in(result: Any) -> Any:
    """Return a number as a stand-in, also inside tuples; anything else as it is."""
    if isinstance(result, tuple):
        return tuple(stand_in(item) for item in result)
    if isinstance(result, float):
        return RealStandIn(result)
    if type(result) in (int, bool, np.bool_):
        return IntegerStandIn(result)
    return result


def formats_text(frame: FrameType) -> bool:
    """Return whether a frame makes text of a number, as ``"%f" % number`` does, rather than a plain number."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("BINARY")


def plain(number: float) -> float:
    """Return a stand-in as a plain number, whose comparisons are not seen."""
    return float.__add__(number, 0.0) if isinstance(number, float) else int.__add__(number, 0)


@_tracked
class RealStandIn(float):
    """A stand-in for a floating point number of data.

    Attributes:
        tensor: where it was read; None for results of arithmetic.
    """

    tensor: Tensor | None = None

    def __float__(self) -> float:
        if not formats_text(sys._getframe(1)):
            refuse_conversion()
        return float.__add__(self, 0.0)

    def __int__(self) -> int:
        if not formats_text(sys._getframe(1)):
            refuse_conversion()
        return float.__int__(self)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if ufunc.__name__ in _FINITE:
            return is_finite(self) == (ufunc.__name__ == "isfinite")
        return stand_in(
            getattr(ufunc, method)(*[plain(item) if is_stand_in(item) else item for item in inputs], **kwargs)
        )

    def __repr__(self) -> str:
        return TextStandIn(float.__repr__(self))

    def __format__(self, specification: str) -> str:
        return TextStandIn(float.__format__(self, specification))

    __str__ = __repr__


@_tracked
class IntegerStandIn(int):
    """A stand-in for an integer of data."""

    def __float__(self) -> float:
        if not formats_text(sys._getframe(1)):
            refuse_conversion()
        return int.__float__(self)

    def __int__(self) -> int:
        refuse_conversion()

    def __repr__(self) -> str:
        return TextStandIn(int.__repr__(self))

    def __format__(self, specification: str) -> str:
        return TextStandIn(int.__format__(self, specification))

    __str__ = __repr__


class TextStandIn(str):
    """A text of a stand-in alone, such as ``str(number)``, which can be printed but not read."""


for _name in ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__contains__", "__getitem__"):
    setattr(TextStandIn, _name, _refusing(_name))
for _name in ("__float__", "__int__", "__len__", "__iter__", "startswith", "endswith", "find", "index", "count"):
    setattr(TextStandIn, _name, _refusing(_name))


class ArrayStandIn(np.ndarray):
    """A stand-in for an array of data; its entries are stand-ins.

    Functions of numpy that need other entries raise errors that training does not raise, so they may not be caught.
    """

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if "out" in kwargs:
            kwargs["out"] = tuple(_objects(item) for item in kwargs["out"])
        return _uncaught(getattr(ufunc, method), [_objects(item) for item in inputs], kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _uncaught(partial(super().__array_function__, func, types), [args, kwargs], {})

    def __str__(self) -> str:
        return str(self.view(np.ndarray))

    def __repr__(self) -> str:
        return repr(self.view(np.ndarray))


def _objects(value: object) -> object:
    return value.view(np.ndarray) if isinstance(value, ArrayStandIn) else value


def _uncaught(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the result of a function of numpy; note its errors."""
    try:
        result = function(*args, **kwargs)
    except CaptureError:
        raise
    except Exception as error:
        recording = current()
        if recording is not None:
            recording.failures.append(f"{current_line()} raises {type(error).__name__}: {error}")
        raise
    return result.view(ArrayStandIn) if type(result) is np.ndarray and result.dtype == object else result


def is_finite(number: object) -> bool:
    """Return True for a stand-in, and note that the tensor that it was read of must be finite in every run."""
    recording = current()
    if recording is not None and isinstance(number, RealStandIn):
        recording.finite_checks.note(number.tensor)
    return True


def read(recording: Recording, tensor: Tensor) -> Any:
    """Return the stand-in for a number of a tensor, other ones for other probes and other reads.

    Raises:
        CaptureError: for booleans and complex numbers.
    """
    if tensor.is_complex() or tensor.dtype is torch.bool:
        refuse_branch(f"a number of type {tensor.dtype}")
    count = len(recording.reads)
    recording.reads.append(current_line())
    if tensor.is_floating_point():
        number = RealStandIn(_REALS[recording.probe] * (1 + count / 64))
        number.tensor = tensor
        return number
    return IntegerStandIn(_INTEGERS[(recording.probe + count) % PROBES])


@contextmanager
def tracked_math() -> Iterator[None]:
    """Let functions of `math` return stand-ins for stand-ins."""
    originals = {name: function for name, function in vars(math).items() if callable(function) and name[0] != "_"}
    for name, function in originals.items():
        setattr(math, name, _tracked_function(name, function))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(math, name, function)


def _tracked_function(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def tracked(*args: Any, **kwargs: Any) -> Any:
        given = [arg.item() if isinstance(arg, Tensor) else arg for arg in args]
        if not any(map(is_stand_in, given)):
            return function(*given, **kwargs)
        if name in _FINITE:
            return is_finite(given[0]) == (name == "isfinite")
        return stand_in(function(*given, **kwargs))

    return tracked


def is_stand_in(value: object) -> bool:
    """Return whether a value is a number of data."""
    return isinstance(value, RealStandIn | IntegerStandIn)
