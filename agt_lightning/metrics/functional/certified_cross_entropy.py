"""Certified cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from agt_lightning.certificates.goals import (
    binary_cross_entropy_bounds,
    cross_entropy_bounds,
    finite_samples,
    is_single_logit,
)
from agt_lightning.metrics.functional.averages import mean_from_above, sum_from_above
from agt_lightning.metrics.functional.bounds import checked_bounds


def certified_cross_entropy(lower: Tensor, upper: Tensor, target: Tensor) -> Tensor:
    r"""Upper bound of the mean cross-entropy of every model within the bounds.

    .. math::
        \frac{1}{N} \sum_{i=1}^N \log\Big(1 + \sum_{j \ne y_i} e^{f_j^U(x_i) - f_{y_i}^L(x_i)}\Big)

    and the logistic loss for one logit. Attained if one model attains the worst case of every sample. The sum is taken
    in float64 and rounded outward. A NaN or infinite bound makes the result infinite.

    Args:
        lower: lower bounds of the logits, ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for two classes.
        upper: upper bounds, of the same shape and dtype.
        target: integer classes ``(N,)``; with one logit also ``(N, 1)`` and any real type, 0 or 1.

    Returns:
        Float64 scalar in nats per sample; infinite for no samples.

    Raises:
        TypeError: if a bound is not of a floating point type, or the target not of an integer type.
        ValueError: if shapes do not match or a class is out of range.
        UnsoundBoundError: if a lower bound exceeds its upper bound.

    Reference:
        Paper, equations 11 and 16 and appendix C.3, with the term of the true class corrected.

    Example:
        >>> lower, upper = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> certified_cross_entropy(lower, upper, torch.tensor([0]))
        tensor(0.6931, dtype=torch.float64)
    """
    return _certified_cross_entropy_compute(*_certified_cross_entropy_update(lower, upper, target))


def _certified_cross_entropy_update(lower: Tensor, upper: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the worst losses, and number of samples."""
    logits = checked_bounds(lower, upper).to(dtype=torch.float64)
    loss_bounds = binary_cross_entropy_bounds if is_single_logit(logits) else cross_entropy_bounds
    worst = loss_bounds(logits, target).upper
    # The worst case reads one bound of each logit; an overflow in the other voids the sample all the same.
    return sum_from_above(torch.where(finite_samples(logits), worst, torch.inf))


def _certified_cross_entropy_compute(loss: Tensor, total: Tensor) -> Tensor:
    return mean_from_above(loss, total)
