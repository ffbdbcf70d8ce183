"""Bounds of the softmax over a box of logits.

``p_k = 1 / (1 + Σ_{j≠k} exp(z_j - z_k))`` rises with z_k and falls with every other z_j, so its extremes over a box are
at two corners and the bounds below are attained. The term of k itself is exactly 1: the upper bound printed in the
paper (appendix C.3) has ``exp(z_k^L - z_k^U)`` there, which is loose.
"""

import math

import torch
from torch import Tensor

from agt_lightning.interval import Interval


def softmax(logits: Interval) -> Interval:
    """Return bounds on the probabilities, classes on axis 1; exact for each class.

    Example:
        >>> softmax(Interval(torch.zeros(1, 2), torch.zeros(1, 2))).upper
        tensor([[0.5000, 0.5000]])
    """
    if logits.is_point:
        shares = (logits.lower - logits.lower.amax(dim=1, keepdim=True)).exp_()
        return Interval.point(shares.div_(shares.sum(dim=1, keepdim=True)), nonnegative=True)
    lower = _odds_against(logits.lower, logits.upper).add_(1).reciprocal_()
    # Odds too large for their type are at least its largest number.
    largest = torch.finfo(logits.dtype).max
    upper = _odds_against(logits.upper, logits.lower).clamp_(max=largest).add_(1).reciprocal_()
    return Interval.trusted(lower, upper, nonnegative=True)


def surprisal(logits: Interval) -> Interval:
    """Return bounds on ``-log p_k``, classes on axis 1; exact for each class."""
    if logits.is_point:
        return Interval.point(-logits.lower.log_softmax(dim=1), nonnegative=True)
    lower = softplus(logsumexp_of_others(logits.lower) - logits.upper)
    upper = softplus(logsumexp_of_others(logits.upper) - logits.lower)
    return Interval.trusted(lower, upper, nonnegative=True)


def softplus(values: Tensor) -> Tensor:
    """Return ``log(1 + exp(x))``; `torch.nn.functional.softplus` has a threshold above which it is 2e-9 too small."""
    return torch.logaddexp(values, torch.zeros_like(values))


def logsumexp_of_others(values: Tensor) -> Tensor:
    """Return ``log Σ_{j≠k} exp(v_j)`` for every k along axis 1, without cancellation and without a table of pairs.

    Example:
        >>> logsumexp_of_others(torch.tensor([[1.0, 5.0]]))
        tensor([[5., 1.]])
    """
    largest, position, shares = _others(values)
    rest = values.scatter(1, position, -torch.inf).logsumexp(dim=1, keepdim=True)
    return shares.log_().add_(largest).scatter_(1, position, rest)


def _odds_against(logits: Tensor, others: Tensor) -> Tensor:
    """``Σ_{j≠k} exp(others_j - logits_k)`` for every k along axis 1; infinite if it overflows."""
    largest, position, shares = _others(others)
    if bool((largest - logits.gather(1, position) > math.log(torch.finfo(logits.dtype).max) / 2).any()):
        return (logsumexp_of_others(others) - logits).exp_()  # the shares beside the largest value may have vanished
    return (largest - logits).exp_().mul_(shares)


def _others(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest value m along axis 1, its first position, and ``Σ_{j≠k} exp(v_j - m)`` for every k.

    The sum can be less than one only at that position; elsewhere a difference of sums loses nothing beside the one.
    """
    largest, position = values.max(dim=1, keepdim=True)
    shares = (values - largest).exp_().scatter_(1, position, 0.0)
    total = shares.sum(dim=1, keepdim=True)
    return largest, position, torch.sub(total, shares, out=shares).add_(1).scatter_(1, position, total)
