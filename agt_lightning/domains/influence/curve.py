"""Certified accuracy for all numbers of flips at once."""

import torch
from torch import Tensor


def certified_accuracy_curve(flips: Tensor, correct: Tensor, max_n: int) -> Tensor:
    """Fraction of test points that are classified correctly whatever n flips the adversary makes.

    Each point is attacked on its own: flips that are worst for one point need not be worst for another.

    Args:
        flips: certified flips of each test point, (Q,), of `certified_flips`.
        correct: whether the prediction is the true class, boolean (Q,).
        max_n: largest n.

    Returns:
        float64 (max_n + 1,), for n = 0, 1, ..., max_n.

    Raises:
        ValueError: if there are no points, or the shapes differ.

    Example:
        >>> certified_accuracy_curve(torch.tensor([2, 0, 5]), torch.tensor([True, True, False]), 3)
        tensor([0.6667, 0.3333, 0.3333, 0.0000], dtype=torch.float64)
    """
    if flips.ndim != 1 or flips.shape != correct.shape or not len(flips):
        raise ValueError(
            "Expected `flips` and `correct` of one shape (points,) with a point at least, but got "
            f"{tuple(flips.shape)} and {tuple(correct.shape)}."
        )
    ends = torch.bincount(flips[correct].clamp(max=max_n), minlength=max_n + 1)
    return ends.flip(0).cumsum(0).flip(0).double() / len(flips)
