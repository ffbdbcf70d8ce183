"""SEMax: the sum of the n largest entries, separately for each parameter element."""

from torch import Tensor

from agt_lightning.aggregation.kernels import kernel_for


def top_n_sum(gains: Tensor, n: int) -> Tensor:
    """Compute ``SEMax_n``, the largest sum of at most n entries of each row, exactly up to the rounding of that sum.

    Entries below zero are never counted: an adversary that may change n samples may change fewer.

    Args:
        gains: (e, b).
        n: largest number of entries in the sum.

    Returns:
        (e,)

    Example:
        >>> import torch
        >>> top_n_sum(torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, -3.0]]), n=2)
        tensor([5., 0.])
    """
    return kernel_for(gains.device).sums(gains, n)
