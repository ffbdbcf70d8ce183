"""SEMax: the sum of the n largest entries, for each parameter element on its own."""

import numpy as np
import torch
from torch import Tensor


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
    gains = gains.clamp_(min=0)
    if n >= samples:
        return gains.sum(dim=1)
    if n == 0:
        return gains.new_zeros(gains.shape[0])
    if gains.is_cuda:
        return torch.topk(gains, n, dim=1, sorted=False).values.sum(dim=1)
    # On CPU, partitioning costs a fifth of `torch.topk` at 10 000 samples.
    values = gains.numpy()
    values.partition(samples - n, axis=1)
    return torch.from_numpy(np.sum(values[:, samples - n :], axis=1))
