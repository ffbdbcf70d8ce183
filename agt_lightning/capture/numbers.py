"""Stand-ins for numbers that the user's code reads of data, such as ``loss.item()``.

A number that is printed or logged does no harm; one that reaches the loss or a branch does. So the code is recorded
several times, each time with other numbers, and all recordings must be equal. The stand-ins are far apart and include
numbers beyond any threshold. Each also refuses to be compared, so that no threshold between two of them is missed;
sums, products and functions of `math` of stand-ins are stand-ins. All are finite: finite bounds prove that every run's
numbers are, so `math.isnan` and `math.isinf` are False in every run.
"""

from __future__ import annotations

import dis
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor

from agt_lightning.capture.recording import Recording, refuse_branch, refuse_conversion
from agt_lightning.capture.source import current_line

T = TypeVar("T", bound=type)

_REALS = (0.37, 1e30, -1e30, 30.0, -1.0, 1.0)
_INTEGERS = (1, 1000, -1000, 0, 7, 2)

PROBES = len(_REALS)
"""Number of recordings of code that reads numbers."""

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
    if type(result) is float:
        return RealStandIn(result)
    if type(result) in (int, bool):
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
    """A stand-in for a floating point number of data."""

    def __float__(self) -> float:
        if not formats_text(sys._getframe(1)):
            refuse_conversion()
        return float.__add__(self, 0.0)

    def __int__(self) -> int:
        if not formats_text(sys._getframe(1)):
            refuse_conversion()
        return float.__int__(self)

    def __repr__(self) -> str:
        return float.__repr__(self)

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
        return int.__repr__(self)

    __str__ = __repr__


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
        return RealStandIn(_REALS[recording.probe] * (1 + count / 64))
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
        result = function(*given, **kwargs)
        finite = name in ("isnan", "isinf", "isfinite")
        return result if finite or not any(map(_is_stand_in, given)) else stand_in(result)

    return tracked


def _is_stand_in(value: object) -> bool:
    return isinstance(value, RealStandIn | IntegerStandIn)
