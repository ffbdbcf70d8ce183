"""Moving samples from the first axis to the last, where sums over samples and their largest entries run in order."""

import torch
from torch import Tensor

_ROWS, _COLUMNS = 512, 64
"""Tile of a matrix that is transposed at a time: read and written from the cache."""


def samples_last(values: Tensor) -> Tensor:
    """A matrix (b, p) as a contiguous one of shape (p, b).

    On a CPU tile by tile: reading a large matrix column by column misses the cache with every entry.

    Example:
        >>> samples_last(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        tensor([[1., 3., 5.],
                [2., 4., 6.]])
    """
    samples, size = values.shape
    if values.device.type != "cpu":
        return values.T.contiguous()
    result = torch.empty(size, samples, dtype=values.dtype)
    source, target = values.detach().numpy(), result.numpy()
    for row in range(0, samples, _ROWS):
        for column in range(0, size, _COLUMNS):
            rows, columns = slice(row, row + _ROWS), slice(column, column + _COLUMNS)
            target[columns, rows] = source[rows, columns].T
    return result
