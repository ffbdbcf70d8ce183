"""Certified accuracy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from agt_lightning.certificates.goals import class_indices, possible_classes, targeted_attack_reachable
from agt_lightning.metrics.functional.averages import count_samples, rate_from_below
from agt_lightning.metrics.functional.bounds import checked_bounds


def certified_accuracy(lower: Tensor, upper: Tensor, target: Tensor) -> Tensor:
    r"""Compute the fraction of samples that every model within the bounds classifies correctly.

    .. math::
        \frac{1}{N} \sum_{i=1}^N \mathbb{1}\big(f_{y_i}^L(x_i) > f_j^U(x_i) \;\; \forall j \ne y_i\big)

    With one logit, class 1 needs ``f^L > 0`` and class 0 needs ``f^U < 0``. The result is a lower bound on the
    accuracy of every model whose logits lie in the bounds. Ties and samples with a NaN or infinite bound are not
    certified.

    One logit decides by its sign. Subtract 1/2 from bounds on one probability: as they are, all mean class 1.

    Args:
        lower: lower bounds of the logits, ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for two classes.
        upper: upper bounds, of the same shape and dtype.
        target: integer classes ``(N,)``; with one logit also ``(N, 1)`` and any real type.

    Returns:
        Scalar in [0, 1], rounded down; 0 for no samples.

    Raises:
        TypeError: if a bound is not of a floating point type, or the target not of an integer type.
        ValueError: if shapes do not match or a class is out of range.
        UnsoundBoundError: if a lower bound exceeds its upper bound.

    Reference:
        Paper, section 3.5 and appendix B.2, with a strict inequality.

    Example:
        >>> import torch
        >>> lower = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> upper = torch.tensor([[2.0, 0.5], [1.0, 2.0]])
        >>> certified_accuracy(lower, upper, torch.tensor([0, 1]))
        tensor(0.5000)
    """
    return _certified_accuracy_compute(*_certified_accuracy_update(lower, upper, target))


def _certified_accuracy_update(lower: Tensor, upper: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Count the samples that are certified correct, and all samples."""
    logits = checked_bounds(lower, upper)
    possible = possible_classes(logits)
    correct = F.one_hot(class_indices(logits, target), possible.shape[1]).bool()
    return count_samples(~targeted_attack_reachable(possible, correct))


def _certified_accuracy_compute(certified: Tensor, total: Tensor) -> Tensor:
    return rate_from_below(certified, total)
