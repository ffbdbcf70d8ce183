"""Averages over samples that stay conservative under rounding, and if there are no samples."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDINGS_PER_SAMPLE = 2**16
"""Rounding errors of one sample's loss that `mean_from_above` allows for, in units of float64's ``eps``.

A squared error has three; a cross-entropy at most about ``classes + 800``, since ``exp(x)`` amplifies an error of its
argument by ``|x| < 746``."""


def count_samples(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Count the true elements and all elements, both as ``torch.long``.

    Example:
        >>> count_samples(torch.tensor([True, False, True]))
        (tensor(2), tensor(3))
    """
    return mask.sum(), torch.tensor(mask.numel(), device=mask.device)


_EXACT = 2**29
"""Up to so many samples the product of their number and a float32 number is exact in float64."""


def rate_from_below(hits: Tensor, total: Tensor) -> Tensor:
    """Compute the fraction ``hits / total``, rounded down to float32; 0 if there are no samples.

    Example:
        >>> rate_from_below(torch.tensor(1), torch.tensor(4)), rate_from_below(torch.tensor(0), torch.tensor(0))
        (tensor(0.2500), tensor(0.))
        >>> 3 * rate_from_below(torch.tensor(2), torch.tensor(3)).double() < 2
        tensor(True)
    """
    nearest = (hits.double() / total.clamp(min=1)).float()
    is_below = (nearest.double() * total <= hits) & _comparable(hits, total)
    return torch.where(is_below, nearest, nearest.nextafter(torch.zeros_like(nearest)))


def rate_from_above(hits: Tensor, total: Tensor) -> Tensor:
    """Compute the fraction ``hits / total``, rounded up to float32; 1 if there are no samples.

    Example:
        >>> rate_from_above(torch.tensor(1), torch.tensor(4)), rate_from_above(torch.tensor(0), torch.tensor(0))
        (tensor(0.2500), tensor(1.))
        >>> 3 * rate_from_above(torch.tensor(1), torch.tensor(3)).double() > 1
        tensor(True)
    """
    nearest = (hits.double() / total.clamp(min=1)).float()
    is_above = (nearest.double() * total >= hits) & _comparable(hits, total)
    return torch.where(total > 0, torch.where(is_above, nearest, nearest.nextafter(torch.ones_like(nearest))), 1.0)


def _comparable(hits: Tensor, total: Tensor) -> Tensor:
    """Return whether the product of the number of samples and a float32 fraction is exact in float64."""
    return (total <= _EXACT) | (hits == 0) | (hits == total)


def sum_from_above(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Sum upper bounds on losses in float64, with NaN read as infinity, and count them as ``torch.long``.

    Example:
        >>> sum_from_above(torch.tensor([1.0, float("nan")]))
        (tensor(inf, dtype=torch.float64), tensor(2))
    """
    bounded = torch.where(losses.isnan(), torch.inf, losses.to(torch.float64))
    return bounded.sum(), torch.tensor(losses.numel(), device=losses.device)


def mean_from_above(loss_sum: Tensor, total: Tensor) -> Tensor:
    """Compute an upper bound on the mean of nonnegative losses, rounded outward; infinite if there are no samples.

    A sum of ``total`` nonnegative terms has a relative rounding error below ``total * eps`` in any order, also batch by
    batch and process by process; underflow is not included. The result is float64: a cast to float32 rounds to nearest
    and can fall below it.

    Args:
        loss_sum: float64 sum of `sum_from_above`, scalar.
        total: number of terms, scalar.

    Example:
        >>> mean_from_above(torch.tensor(3.0, dtype=torch.float64), torch.tensor(2))
        tensor(1.5000, dtype=torch.float64)
        >>> mean_from_above(torch.tensor(0.0, dtype=torch.float64), torch.tensor(0))
        tensor(inf, dtype=torch.float64)
    """
    roundings = total.to(torch.float64) + ROUNDINGS_PER_SAMPLE
    mean = loss_sum / total * (1 + roundings * torch.finfo(torch.float64).eps)
    return torch.where(total > 0, mean, torch.inf)
