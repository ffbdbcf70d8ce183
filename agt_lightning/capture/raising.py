"""Calls of torch that raise errors for some data, and code that catches errors.

A run that an error ends needs no bounds. If the code catches the error, a poisoned run goes on another way than the
clean one, in which nothing was raised. So where the code may catch errors, it is recorded with one as well.
"""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from agt_lightning.capture.source import is_of_user

_NAMES = (
    *("binary_cross_entropy", "cross_entropy", "nll_loss", "ctc_loss", "multi_margin_loss", "multilabel_margin_loss"),
    *("embedding", "embedding_bag", "one_hot", "bincount", "histc", "repeat_interleave", "quantile", "nanquantile"),
    *("gather", "take", "take_along_dim", "index_select", "masked_scatter", "masked_scatter_", "__getitem__"),
    *("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "__setitem__"),
    *("index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_", "index_put", "index_put_"),
    *("index_reduce", "index_reduce_", "multinomial", "bernoulli", "bernoulli_", "poisson", "binomial", "normal"),
    *("normal_", "exponential_", "geometric_", "cauchy_", "log_normal_", "uniform_", "random_"),
    *("_assert_async", "_assert_scalar", "div", "div_", "divide", "divide_", "floor_divide", "floor_divide_"),
    *("remainder", "remainder_", "fmod", "fmod_", "__floordiv__", "__rfloordiv__", "__mod__", "__rmod__"),
    *("__ifloordiv__", "cholesky", "cholesky_inverse", "cholesky_solve", "inverse", "pinverse", "logdet", "lu", "qr"),
    *("lu_solve", "ormqr", "svd", "eig", "symeig", "solve", "lstsq", "triangular_solve", "matrix_power", "geqrf"),
    *("tensor_split", "pow", "float_power", "pack_padded_sequence", "pad_packed_sequence", "polygamma", "mvlgamma"),
)  # fmt: skip
"""Names of functions of torch that raise errors for some numbers in their arguments, besides linear algebra."""

_MODULES = (torch, Tensor, F, torch.special, torch._C._VariableFunctions, torch._C._nn)

_RAISING = frozenset(
    {getattr(module, name) for module in _MODULES for name in _NAMES if hasattr(module, name)}
    | {getattr(torch.linalg, name) for name in dir(torch.linalg) if callable(getattr(torch.linalg, name))}
    | {getattr(Tensor, name) for name in dir(torch.linalg) if callable(getattr(Tensor, name, None))}
)


class DataError(torch.linalg.LinAlgError, ValueError, IndexError, ArithmeticError):  # type: ignore[name-defined,misc]
    """An error of a call whose data are out of its range, of each type that torch has for that."""


def raises_for_some(func: object, arguments: object, is_data: Callable[[object], bool]) -> bool:
    """Return whether a call can raise an error for some data.

    Args:
        func: the function of torch.
        arguments: all of its arguments, in any structure.
        is_data: whether an argument has other numbers in other runs.
    """
    try:
        if func not in _RAISING:
            return False
    except TypeError:  # not hashable
        return False
    return any(map(is_data, tree_leaves(arguments)))


def is_caught(outermost: Callable[[types.FrameType], bool]) -> bool:
    """Return whether user code that now runs may catch an error: in a ``try``, a ``with`` or a ``finally``.

    Args:
        outermost: whether a frame is the one from which on frames are not of the step.

    Example:
        >>> is_caught(lambda frame: False) in (True, False)
        True
    """
    return any(_handles(frame) for frame in _frames(outermost) if is_of_user(frame))


def _frames(outermost: Callable[[types.FrameType], bool]) -> Iterator[types.FrameType]:
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and not outermost(frame):
        yield frame
        frame = frame.f_back


def _handles(frame: types.FrameType) -> bool:
    table = dis._parse_exception_table(frame.f_code)  # type: ignore[attr-defined]
    return any(entry.start <= frame.f_lasti < entry.end for entry in table)


def has_handler(code: types.CodeType) -> bool:
    r"""Return whether code, or a function in it, may catch an error.

    Example:
        >>> has_handler(compile("try: f()\nexcept ValueError: pass", "", "exec"))
        True
        >>> has_handler(compile("f()", "", "exec"))
        False
    """
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return bool(code.co_exceptiontable) or any(map(has_handler, inner))
