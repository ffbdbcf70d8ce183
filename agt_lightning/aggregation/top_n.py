"""SEMax: the sum of the n largest entries, separately for each parameter element."""

from functools import lru_cache

import torch
from torch import Tensor

_FEW = 256
"""Number of samples up to which selection is fast even if many entries are equal."""


def top_n_sum(gains: Tensor, n: int) -> Tensor:
    """Compute ``SEMax_n``, the largest sum of at most n entries of each row, exactly (but see `most_added`).

    Entries below zero are never counted: an adversary that may change n samples may change fewer.

    Args:
        gains: (e, b); overwritten.
        n: largest number of entries in the sum.

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
    """Return the n largest entries of each row, in any order.

    On a CPU, entries may differ from those of ``gains`` by as much as `most_added` states; in a row without positive
    entries, they may be any numbers not above zero.

    Args:
        gains: (e, b); overwritten.
        n: number of entries, 1 to b.

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
    any_positive = gains.amax(dim=1, keepdim=True) > 0
    offsets = _tie_breakers(samples, gains.dtype)
    # The largest offset is added back wherever it matters, so a gain can decrease only by rounding: see `most_added`.
    return _partitioned(gains.sub_(offsets), n).add_(any_positive * offsets[-1])


def most_added(samples: int, dtype: torch.dtype) -> float:
    """Return how much `largest` can increase an entry: 2 b t, with the smallest normal number t.

    `largest` breaks ties: it subtracts k t from the entry of sample k, selects, and adds b t. In exact arithmetic the
    selected entries grow by (b - k) t. Both operations round, so a gain of up to 2⁵⁴ b t (in float64) can change by one
    unit in its last place, at most 2 b t, in either direction. A sum of n gains can therefore be too low by 2 n b t: at
    b = 10 000 samples that is n times 4e-304 in float64 and n times 2e-34 in float32. Larger gains do not change.

    Example:
        >>> most_added(10_000, torch.float64) < 1e-303
        True
    """
    return 2 * samples * torch.finfo(dtype).tiny


def _partitioned(gains: Tensor, n: int) -> Tensor:
    """Select by `numpy`'s partition, which costs a fifth of `torch.topk` on a CPU at 10 000 samples."""
    start = gains.shape[1] - n
    gains.numpy().partition(start, axis=1)
    return gains[:, start:]


@lru_cache(maxsize=4)
def _tie_breakers(samples: int, dtype: torch.dtype) -> Tensor:
    """Return k t for sample k = 1 to b, with the smallest normal number t: offsets that make equal gains distinct.

    `numpy` takes thirty times as long if four entries in five are equal, and gains are zero for all samples whose unit
    is inactive. Subtracting these numbers makes them distinct. It leaves gains above 2⁵⁴ b t (1e-287 at b = 10 000, in
    float64) unchanged to the last bit; smaller ones change by up to 2 b t, of which `largest` gives back b t. What is
    left can make a top-n sum too low, by the tiny amount that `most_added` states.
    """
    return torch.arange(1, samples + 1, dtype=dtype) * torch.finfo(dtype).tiny
