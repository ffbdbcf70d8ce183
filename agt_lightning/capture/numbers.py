"""Stand-ins for numbers that the user's code reads of data, such as ``loss.item()``.

A number that is printed or logged does no harm; one that reaches the loss or a branch does. So the code is recorded
several times, each time with other numbers, and all recordings must be equal. The numbers include infinities and NaN,
so that a branch at any threshold is seen. Each comparison of a stand-in is a branch, which comes out both ways, so
that no two thresholds can enclose one between them; sums, products, functions of `math` and texts of stand-ins are
stand-ins.

``float(loss)`` and ``int(count)`` can only be plain numbers, whose comparisons are not seen. Code that makes them is
recorded more often: a branch at one threshold is seen, one between two close thresholds may not be (the assumption
"one path through the code" of a certificate).
"""

from __future__ import annotations

import dis
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from agt_lightning.capture.recording import Recording, branch, current, refuse_branch
from agt_lightning.capture.source import current_line
from agt_lightning.errors import CaptureError

T = TypeVar("T", bound=type)

_REALS = (0.37, 30.0, math.inf, -math.inf, -1.0, math.nan, 2.6, 1e-3, -0.04, 5e3)
_INTEGERS = (1, 7, 0, -1, 1000, 2, 3, 10)

_SIZES = (4, 0, 1, 2, 3, 7, 64, 1000)

_FEW_PROBES, _PROBES = 6, len(_REALS)

_LARGE = 10**7
"""What ``int()`` makes of infinity; no larger, since code may make a list of that length."""

_FINITE = ("isnan", "isinf", "isfinite")
_COMPARISONS = ("__bool__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
_CONVERSIONS = ("__hash__", "as_integer_ratio", "hex", "is_integer", "bit_length", "bit_count", "to_bytes")
_ARITHMETIC = tuple(
    f"__{side}{name}__" for side in ("", "r") for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
) + ("__neg__", "__pos__", "__abs__", "__round__", "__trunc__", "__floor__", "__ceil__", "__divmod__", "__rdivmod__")


def _tracked(cls: T) -> T:
    """Give a class of numbers methods whose comparisons are branches, and which return stand-ins of arithmetic."""
    base = cls.__bases__[0]
    for name in _COMPARISONS:
        setattr(cls, name, _branching(name))
    for name in _CONVERSIONS:
        if hasattr(base, name):
            setattr(cls, name, _refusing(name))
    for name in _ARITHMETIC:
        if hasattr(base, name):
            setattr(cls, name, _tracking(getattr(base, name)))
    return cls


def _branching(name: str) -> Callable[..., bool]:
    def method(self: object, *args: object) -> bool:
        return branch(f"`{name}` of a number that was read of a tensor")

    return method


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


def probes(recording: Recording) -> int:
    """Return how often the code of a recording must be recorded, each time with other numbers."""
    if not recording.reads and not recording.conversions:
        return 1
    return _PROBES if recording.conversions else _FEW_PROBES


def plain(number: float) -> float:
    """Return a stand-in as a plain number, whose comparisons are not seen."""
    return float.__add__(number, 0.0) if isinstance(number, float) else int.__add__(number, 0)


def converted(number: float) -> float:
    """Return a stand-in as a plain number for ``float(number)``, and note it."""
    result = float(plain(number))
    recording = current()
    if recording is not None:
        recording.conversions[id(result)] = (result, number)
    return result


def truncated(number: float) -> int:
    """Return a stand-in as a plain integer for ``int(number)``, and note it.

    Raises:
        ValueError: for NaN, as in training.
    """
    value = plain(number)
    result = int(math.copysign(_LARGE, value)) if value in (math.inf, -math.inf) else int(value)
    recording = current()
    if recording is not None:
        recording.conversions[id(number)] = (number, number)
    return result


@_tracked
class RealStandIn(float):
    """A stand-in for a floating point number of data.

    Attributes:
        tensor: where it was read; None for results of arithmetic.
    """

    tensor: Tensor | None = None

    def __float__(self) -> float:
        return plain(self) if formats_text(sys._getframe(1)) else converted(self)

    def __int__(self) -> int:
        return float.__int__(self) if formats_text(sys._getframe(1)) else truncated(self)

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
        return int.__float__(self) if formats_text(sys._getframe(1)) else converted(self)

    def __int__(self) -> int:
        return truncated(self)

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

    Functions of numpy compute with the numbers behind them, and return stand-ins. Their errors need not be those of
    training, so they may not be caught.
    """

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _of_arrays(getattr(ufunc, method), inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func not in _OF_FIXED_SHAPE:
            refuse_branch(f"`{func.__name__}` of an array")
        return _of_arrays(func, args, kwargs)

    def __getitem__(self, key: Any) -> Any:
        if _holds_data(key):
            refuse_branch("an index that depends on data")
        return super().__getitem__(key)

    def astype(self, *args: Any, **kwargs: Any) -> ArrayStandIn:
        """Return the same array: its entries are numbers of any type."""
        return self

    def __str__(self) -> str:
        return str(self.view(np.ndarray))

    def __repr__(self) -> str:
        return repr(self.view(np.ndarray))


def _of_method(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: _of_arrays(getattr(np.ndarray, name), (self, *args), kwargs)


_METHODS = (
    *("all", "any", "argmax", "argmin", "argsort", "clip", "cumsum", "dot", "max", "mean", "min", "prod", "round"),
    *("std", "sum", "trace", "var"),
)

for _name in _METHODS:
    setattr(ArrayStandIn, _name, _of_method(_name))

_FUNCTIONS = (
    *("all", "allclose", "any", "argmax", "argmin", "argsort", "array_equal", "average", "clip", "concatenate"),
    *("corrcoef", "cumsum", "dot", "max", "mean", "median", "min", "moveaxis", "percentile", "prod", "quantile"),
    *("reshape", "round", "sort", "squeeze", "stack", "std", "sum", "swapaxes", "transpose", "var", "where"),
)

_OF_FIXED_SHAPE = frozenset(getattr(np, name) for name in _FUNCTIONS)
"""Functions of numpy whose results have a shape that depends on shapes alone."""


def _of_arrays(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Return what a function of numpy makes of the numbers behind stand-ins, as stand-ins."""
    if function is np.where and len(args) == 1:
        refuse_branch("`where` of an array")
    if "out" in kwargs:
        refuse_branch("an array that is written to")
    return _stand_ins(_uncaught(function, [_behind(arg) for arg in args], {k: _behind(v) for k, v in kwargs.items()}))


def _behind(value: Any) -> Any:
    """Return the numbers behind stand-ins, in arrays, lists and tuples too."""
    if isinstance(value, list | tuple):
        return type(value)(map(_behind, value))
    if is_stand_in(value):
        return plain(value)
    if not isinstance(value, ArrayStandIn):
        return value
    numbers = [plain(item) if is_stand_in(item) else item for item in value.view(np.ndarray).ravel().tolist()]
    real = any(isinstance(number, float) for number in numbers) or not numbers
    return np.array(numbers, dtype=np.float64 if real else np.int64).reshape(value.shape)


def _stand_ins(result: Any) -> Any:
    """Return numbers of numpy as stand-ins, in arrays and tuples too."""
    if isinstance(result, tuple):
        return tuple(map(_stand_ins, result))
    if isinstance(result, np.generic):
        return stand_in(result.item())
    if not isinstance(result, np.ndarray):
        return stand_in(result)
    array = np.empty(result.size, dtype=object)
    array[:] = [stand_in(item) for item in result.ravel().tolist()]
    return array.reshape(result.shape).view(ArrayStandIn)


def _holds_data(key: object) -> bool:
    if isinstance(key, tuple | list):
        return any(map(_holds_data, key))
    return isinstance(key, ArrayStandIn) or is_stand_in(key)


def _uncaught(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the result of a function of numpy; note its errors."""
    try:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)
    except CaptureError:
        raise
    except Exception as error:
        recording = current()
        if recording is not None:
            recording.failures.append(f"{current_line()} raises {type(error).__name__}: {error}")
        raise


def is_finite(number: object) -> bool:
    """Return True for a number of data, and note that the tensor that it was read of must be finite in every run.

    If it need not be, both outcomes are possible.
    """
    recording = current()
    if recording is not None and current_line() in recording.unproven:
        return branch("whether a number is finite")
    if recording is not None:
        number = recording.conversions.get(id(number), (number, number))[1]
    if recording is not None and isinstance(number, RealStandIn):
        recording.finite_checks.note(number.tensor)
    return True


def read(recording: Recording, tensor: Tensor) -> Any:
    """Return the stand-in for a number of a tensor, other ones for other probes and other reads.

    Raises:
        CaptureError: for complex numbers.
    """
    if tensor.is_complex():
        refuse_branch(f"a number of type {tensor.dtype}")
    count = len(recording.reads)
    recording.reads.append(current_line())
    if tensor.dtype is torch.bool:
        return IntegerStandIn((recording.probe + count) % 2)
    if tensor.is_floating_point():
        number = RealStandIn(_REALS[recording.probe] * (1 + count / 64))
        number.tensor = tensor
        return number
    if recording.probe >= len(_INTEGERS):
        return IntegerStandIn(_LARGE if recording.probe % 2 else -_LARGE)
    return IntegerStandIn(_INTEGERS[(recording.probe + count) % len(_INTEGERS)])


def remembered_number(probe: int, *, real: bool) -> Any:
    """Return the stand-in for a number that an earlier step has kept, other ones for other probes."""
    return RealStandIn(_REALS[probe]) if real else IntegerStandIn(_INTEGERS[probe % len(_INTEGERS)])


def read_all(recording: Recording, tensor: Tensor) -> list[Any]:
    """Return stand-ins for all numbers of a tensor, no two of which are equal if they are real.

    Raises:
        CaptureError: for complex numbers.
    """
    if tensor.dtype is torch.bool:
        recording.reads.append(current_line())
        return [IntegerStandIn((position + recording.probe) % 2) for position in range(tensor.numel())]
    first = read(recording, tensor)
    if not tensor.is_floating_point():
        return [IntegerStandIn(plain(first) + position % 3) for position in range(tensor.numel())]
    return [_beside(first, position) for position in range(tensor.numel())]


def _beside(number: RealStandIn, position: int) -> RealStandIn:
    other = RealStandIn(plain(number) * (1 + position / 64))
    other.tensor = number.tensor
    return other


def read_size(recording: Recording) -> int:
    """Return a plain number for a size that depends on data, such as ``len(x[mask])``, and note it."""
    count = len(recording.reads)
    recording.reads.append(current_line())
    probe = (recording.probe + count) % (len(_SIZES) + 1) if recording.probe < len(_SIZES) else len(_SIZES)
    size = (*_SIZES, _LARGE)[probe]
    recording.conversions[id(size)] = (size, size)
    return size


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
        if name in _FINITE and _is_data(given[0]):
            return is_finite(given[0]) == (name == "isfinite")
        result = function(*given, **kwargs)
        return stand_in(result) if any(map(is_stand_in, given)) else result

    return tracked


def _is_data(value: object) -> bool:
    """Return whether a value is a number of data, or was made of one by `float`."""
    recording = current()
    return is_stand_in(value) or (recording is not None and id(value) in recording.conversions)


def is_stand_in(value: object) -> bool:
    """Return whether a value is a number of data."""
    return isinstance(value, RealStandIn | IntegerStandIn)
