"""Loops that are compiled for the CPU: one pass over memory where torch takes several, and no temporary tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

try:
    import numba
except ModuleNotFoundError:  # a dependency, but machines that others set up, and new Pythons, can lack it
    logging.getLogger(__name__).warning("numba is not installed: bounds are the same, but slower on a CPU.")
    COMPILES = False
else:
    COMPILES = True

Array = NDArray[np.floating[Any]]
Scalar = float | np.floating[Any]
"""A number of the type of an array."""

Compiled = TypeVar("Compiled", bound=Callable[..., Any])

_FEWEST = 4096
"""Entries from which a compiled loop is faster than torch, whose calls take less time to begin."""

_ROWS = 256
"""Rows of a matrix that are transposed together; they stay in the cache until all their columns are written."""

_STREAMS = 16
"""Columns of a matrix that are transposed together: a cache can follow so many rows that are written at once."""


def compiled(function: Compiled) -> Compiled:
    """Compile a function for arrays, without Python's lock; sums may be taken in any order, NaN and infinity count.

    The machine code is kept on disk where a folder for it is writable; elsewhere each process takes seconds for it.
    Without numba a function stays as it is, and nothing is `readable`, so that torch does its work.
    """
    if not COMPILES:
        return function
    compile_with = partial(numba.njit, nogil=True, fastmath={"contract", "nsz", "reassoc"})
    try:
        return cast("Compiled", compile_with(cache=True)(function))
    except RuntimeError:
        return cast("Compiled", compile_with()(function))


def flat(*tensors: Tensor) -> list[Array] | None:
    """Return tensors as arrays of one axis, in the same memory; None if compiled loops cannot read them, or do not pay.

    Args:
        tensors: of one shape.

    Raises:
        ValueError: if their shapes differ: loops run over the entries of all arrays together, and check no length.

    Example:
        >>> flat(torch.ones(2, 3)) is None, flat(torch.ones(100, 100))[0].shape
        (True, (10000,))
    """
    if any(tensor.shape != tensors[0].shape for tensor in tensors):
        raise ValueError(f"Expected tensors of one shape, but got {', '.join(str(tuple(t.shape)) for t in tensors)}.")
    if tensors[0].numel() < _FEWEST or not readable(*tensors):
        return None
    if any(tensor.requires_grad or not tensor.is_contiguous() for tensor in tensors):
        return None
    return [tensor.numpy().reshape(-1) for tensor in tensors]


def readable(*tensors: Tensor) -> bool:
    """Return whether compiled loops can read all tensors: in single or double precision, in the memory of the CPU."""
    types = (torch.float32, torch.float64)
    return COMPILES and all(tensor.device.type == "cpu" and tensor.dtype in types for tensor in tensors)


@compiled
def transpose(source: Array, target: Array) -> None:
    """Write the transpose of a matrix, tile by tile.

    Args:
        source: (b, p).
        target: (p, b), overwritten.
    """
    rows, columns = source.shape
    for top in range(0, rows, _ROWS):
        for left in range(0, columns, _STREAMS):
            right = min(left + _STREAMS, columns)
            for i in range(top, min(top + _ROWS, rows)):
                for j in range(left, right):
                    target[j, i] = source[i, j]


@compiled
def in_order(lower: Array, upper: Array) -> bool:
    """Return whether no entry of the first array exceeds that of the second; entries that are NaN are not in order.

    Args:
        lower: (e,).
        upper: (e,).
    """
    wrong = 0
    for i in range(len(lower)):
        wrong += not lower[i] <= upper[i]
    return wrong == 0


@compiled
def all_finite(values: Array) -> bool:
    """Return whether no entry is infinite or NaN.

    Args:
        values: (e,).
    """
    wrong = 0
    for i in range(len(values)):
        wrong += not abs(values[i]) < np.inf
    return wrong == 0


@compiled
def moved_outward(values: Array, by: float, result: Array) -> None:
    """Write ``v + by |v|``.

    Args:
        values: v, (e,).
        by: of any sign.
        result: (e,), overwritten.
    """
    for i in range(len(values)):
        result[i] = values[i] + values.dtype.type(by) * abs(values[i])


@compiled
def heaviside_products(lower: Array, upper: Array, start: Array, end: Array, smallest: Array, largest: Array) -> None:
    """Write the ends of ``g h`` for g in [lower, upper] and h in [x > 0 at the start, x > 0 at the end].

    Args:
        lower: (e,), as all others.
        upper: at least as large.
        start: lower bounds on x.
        end: upper bounds on x.
        smallest: overwritten.
        largest: overwritten.
    """
    zero = lower.dtype.type(0)
    for i in range(len(lower)):
        always, never = start[i] > 0, end[i] <= 0
        largest[i] = upper[i] if always or not (upper[i] <= 0 or never) else zero
        smallest[i] = lower[i] if always or not (lower[i] >= 0 or never) else zero
