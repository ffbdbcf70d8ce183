"""Loops that are compiled for the CPU: one pass over memory where torch takes several, and no temporary tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.floating[Any]]
Compiled = TypeVar("Compiled", bound=Callable[..., Any])

_TILE = 32
"""Rows and columns of the tiles in which a matrix is transposed; a few of them stay in the cache."""


def compiled(function: Compiled) -> Compiled:
    """Compile a function for arrays, without Python's lock; sums may be taken in any order, NaN and infinity count."""
    result: Compiled = numba.njit(nogil=True, cache=True, fastmath={"contract", "nsz", "reassoc"})(function)
    return result


def on_cpu(*tensors: Tensor) -> bool:
    """Return whether all tensors have memory that compiled loops can read."""
    return all(tensor.device.type == "cpu" for tensor in tensors)


@compiled
def transpose(source: Array, rows: Array, weights: Array, target: Array) -> None:
    """Write the transpose of some rows of a matrix, each times its weight, tile by tile.

    Args:
        source: (b, p).
        rows: positions of rows, (m,).
        weights: (m,).
        target: (p, m), overwritten.
    """
    columns = source.shape[1]
    for top in range(0, len(rows), _TILE):
        for left in range(0, columns, _TILE):
            for j in range(left, min(left + _TILE, columns)):
                for i in range(top, min(top + _TILE, len(rows))):
                    target[j, i] = source[rows[i], j] * weights[i]


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
