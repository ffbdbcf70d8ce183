"""Averages over samples, which stay conservative under rounding and for no samples at all."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDINGS_PER_SAMPLE = 2**16
"""Rounding errors of one sample's loss that `mean_from_above` makes room for, in units of float64's ``eps``.

A squared error has three; a cross-entropy at most about ``classes + 800``, since ``exp(x)`` amplifies an error of its
argument by ``|x| < 746``."""


def count_samples(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Number of true elements and number of elements, both ``torch.long``.

    Example:
        >>> count_samples(torch.tensor([True, False, True]))
        (tensor(2), tensor(3))
    """
    return mask.sum(), torch.tensor(mask.numel(), device=mask.device)


def rate(hits: Tensor, total: Tensor, *, empty: float) -> Tensor:
    """Fraction ``hits / total`` in [0, 1], or ``empty`` where no sample was seen.

    Example:
        >>> rate(torch.tensor(1), torch.tensor(4), empty=0.0), rate(torch.tensor(0), torch.tensor(0), empty=1.0)
        (tensor(0.2500), tensor(1.))
    """
    return torch.where(total > 0, hits / total.clamp(min=1), empty)


def sum_from_above(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 sum of upper bounds of losses, with NaN read as infinity, and their ``torch.long`` number.

    Example:
        >>> sum_from_above(torch.tensor([1.0, float("nan")]))
        (tensor(inf, dtype=torch.float64), tensor(2))
    """
    bounded = torch.where(losses.isnan(), torch.inf, losses.to(torch.float64))
    return bounded.sum(), torch.tensor(losses.numel(), device=losses.device)


def mean_from_above(loss_sum: Tensor, total: Tensor) -> Tensor:
    """Upper bound of the mean of nonnegative losses, rounded outward; infinite where no sample was seen.

    A sum of ``total`` nonnegative terms has a relative rounding error below ``total * eps`` in any order, also batch by
    batch and process by process; underflow is not counted. The result is float64: a cast to float32 rounds to nearest
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
