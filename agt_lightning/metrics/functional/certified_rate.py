"""Certified rate."""

from __future__ import annotations

from torch import Tensor

from agt_lightning.certificates.goals import possible_classes
from agt_lightning.metrics.functional.averages import count_samples, rate_from_below
from agt_lightning.metrics.functional.bounds import checked_bounds


def certified_rate(lower: Tensor, upper: Tensor) -> Tensor:
    r"""Compute the fraction of samples whose prediction is the same for every model within the bounds, right or wrong.

    .. math::
        \frac{1}{N} \sum_{i=1}^N \mathbb{1}\big(|S'(x_i)| = 1\big)

    where S' is the set of possible classes. Ties and samples with a NaN or infinite bound are not certified.

    One logit decides by its sign. Subtract 1/2 from bounds on one probability: as they are, all mean class 1.

    Args:
        lower: lower bounds of the logits, ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for two classes.
        upper: upper bounds, of the same shape and dtype.

    Returns:
        Scalar in [0, 1], rounded down; 0 for no samples.

    Raises:
        TypeError: if a bound is not of a floating point type.
        ValueError: if shapes do not match.
        UnsoundBoundError: if a lower bound exceeds its upper bound.

    Reference:
        Paper, equation 18, corrected as in `possible_classes`.

    Example:
        >>> import torch
        >>> lower = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> upper = torch.tensor([[2.0, 0.5], [1.0, 2.0]])
        >>> certified_rate(lower, upper)
        tensor(0.5000)
    """
    return _certified_rate_compute(*_certified_rate_update(lower, upper))


def _certified_rate_update(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Count the samples with one possible class, and all samples."""
    return count_samples(possible_classes(checked_bounds(lower, upper)).sum(dim=1) == 1)


def _certified_rate_compute(certified: Tensor, total: Tensor) -> Tensor:
    return rate_from_below(certified, total)
