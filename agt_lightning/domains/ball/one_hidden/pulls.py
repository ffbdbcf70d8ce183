"""How the loss pulls at single hidden units."""

from torch import Tensor

from agt_lightning.domains.ball.unstable import Pairs


def pulls(pairs: Pairs, gradient: Tensor, second: Tensor) -> Tensor:
    """``e_ij = g_i · W₂ e_j`` for each pair, (m,).

    Args:
        pairs: a sample and a unit each.
        gradient: g of all samples, (b, K).
        second: W₂, (K, h).

    Example:
        >>> import torch
        >>> both = Pairs(torch.tensor([0, 0]), torch.tensor([0, 1]))
        >>> pulls(both, torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 3.0], [-1.0, 1.0]]))
        tensor([1., 7.])
    """
    pull = pairs.by_sample(gradient[:, 0]) * pairs.by_unit(second[0])
    for column, row in zip(gradient.T[1:], second[1:], strict=True):
        pull.addcmul_(pairs.by_sample(column), pairs.by_unit(row))
    return pull
