"""Bounds of the softmax over a box of logits.

``p_k = 1 / (1 + Σ_{j≠k} exp(z_j - z_k))`` rises with z_k and falls with every other z_j, so its extremes over a box are
at two corners and the bounds below are attained. The own term is exactly 1: the paper's printed upper bound
(appendix C.3) has ``exp(z_k^L - z_k^U)`` there, which is loose.
"""

import torch
from torch import Tensor

from agt_lightning.interval import Interval


def softmax(logits: Interval) -> Interval:
    """Bounds on the probabilities, classes on axis 1; exact for each class.

    Example:
        >>> softmax(Interval(torch.zeros(1, 2), torch.zeros(1, 2))).upper
        tensor([[0.5000, 0.5000]])
    """
    if logits.is_point:
        return Interval.point(logits.lower.softmax(dim=1), nonnegative=True)
    lower = torch.sigmoid(logits.lower - logsumexp_of_others(logits.upper))
    upper = torch.sigmoid(logits.upper - logsumexp_of_others(logits.lower))
    return Interval.trusted(lower, upper, nonnegative=True)


def surprisal(logits: Interval) -> Interval:
    """Bounds on ``-log p_k``, classes on axis 1; exact for each class."""
    if logits.is_point:
        return Interval.point(-logits.lower.log_softmax(dim=1), nonnegative=True)
    lower = softplus(logsumexp_of_others(logits.lower) - logits.upper)
    upper = softplus(logsumexp_of_others(logits.upper) - logits.lower)
    return Interval.trusted(lower, upper, nonnegative=True)


def softplus(values: Tensor) -> Tensor:
    """``log(1 + exp(x))`` without the threshold of `torch.nn.functional.softplus`, above which it is 2e-9 too small."""
    return torch.logaddexp(values, torch.zeros_like(values))


def logsumexp_of_others(values: Tensor) -> Tensor:
    """``log Σ_{j≠k} exp(v_j)`` for every k along axis 1, without cancellation and without a table of pairs.

    Example:
        >>> logsumexp_of_others(torch.tensor([[1.0, 5.0]]))
        tensor([[5., 1.]])
    """
    if values.shape[1] == 1:
        return torch.full_like(values, -torch.inf)
    largest, place = values.max(dim=1, keepdim=True)
    sizes = (values - largest).exp_()
    # Sums of both sides: a difference from the total would cancel. All but the largest's contain a one.
    before = sizes.cumsum(dim=1).narrow(1, 0, values.shape[1] - 1)
    after = sizes.flip(1).cumsum(dim=1).flip(1).narrow(1, 1, values.shape[1] - 1)
    sums = torch.zeros_like(values)
    sums.narrow(1, 1, values.shape[1] - 1).add_(before)
    sums.narrow(1, 0, values.shape[1] - 1).add_(after)
    result = sums.log_().add_(largest)
    rest = values.scatter(1, place, -torch.inf).logsumexp(dim=1, keepdim=True)
    return result.scatter_(1, place, rest)
