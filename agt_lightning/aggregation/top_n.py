"""SEMax: the sum of the n largest entries, for each parameter element on its own."""

from functools import lru_cache

import torch
from torch import Tensor

_FEW = 256
"""Fewer samples than that are selected from quickly, whatever they are."""


def top_n_sum(gains: Tensor, n: int) -> Tensor:
    """``SEMax_n``: the largest sum of at most n entries per row; exact.

    Entries below zero are never taken: an adversary that may change n samples may change fewer.

    Args:
        gains: (e, b); overwritten.
        n: largest number of entries to take.

    Returns:
        (e,)

    Example:
        >>> top_n_sum(torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, -3.0]]), n=2)
        tensor([5., 0.])
    """
    samples = gains.shape[1]
    if n >= samples:
        return gains.clamp_(min=0).sum(dim=1)
    if n == 0:
        return gains.new_zeros(gains.shape[0])
    return largest(gains, n).clamp(min=0).sum(dim=1)


def largest(gains: Tensor, n: int) -> Tensor:
    """The n largest entries of each row in any order, none smaller than it is.

    On a CPU entries about as small as the smallest normal number, and zeros beside positive ones, may come out larger
    by b times that number; in a row without positive entries, those that come may be any numbers not above zero.

    Args:
        gains: (e, b); overwritten.
        n: how many, 1 to b.

    Returns:
        (e, n)

    Example:
        >>> largest(torch.tensor([[3.0, 1.0, 2.0]]), n=1)
        tensor([[3.]])
    """
    samples = gains.shape[1]
    if gains.is_cuda:
        return torch.topk(gains, n, dim=1, sorted=False).values
    if samples <= _FEW:
        return _partitioned(gains, n)
    taken = gains.amax(dim=1, keepdim=True) > 0
    distinct = _distinct(samples, gains.dtype)
    # Where something is taken, what ties are broken by is given back, so no gain comes out smaller than it is.
    return _partitioned(gains.sub_(distinct), n).add_(taken * distinct[-1])


def most_added(samples: int, dtype: torch.dtype) -> float:
    """How much larger than they are entries can be that `largest` returns.

    Example:
        >>> most_added(10_000, torch.float64) < 1e-303
        True
    """
    return samples * torch.finfo(dtype).tiny


def _partitioned(gains: Tensor, n: int) -> Tensor:
    """On CPU, partitioning costs a fifth of `torch.topk` at 10 000 samples."""
    start = gains.shape[1] - n
    gains.numpy().partition(start, axis=1)
    return gains[:, start:]


@lru_cache(maxsize=4)
def _distinct(samples: int, dtype: torch.dtype) -> Tensor:
    """Numbers below the rounding of any gain that is not about to underflow, and all different.

    `numpy` takes thirty times as long where four entries in five are equal, and gains are zero for every sample whose
    unit is off. Subtracted, these numbers tell them apart, and leave gains above 2⁵⁴ b times the smallest normal number
    (1e-287 at b = 10 000) as they are, to the last bit.
    """
    return torch.arange(1, samples + 1, dtype=dtype) * torch.finfo(dtype).tiny
