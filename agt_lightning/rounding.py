"""Floating point: outward rounding, and how far a float program may stray from the real one.

Bounds are sound for the program in real arithmetic and are computed in float64 by default. Where they are compared with
what a float program did, the slack comes from here and from nowhere else.
"""

import math

import torch
from torch import Tensor

CONFIDENCE = 8.0
"""λ of Higham and Mary (2019): rounding errors leave their bound with probability below 2 exp(-λ²/2) = 3e-14."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of one rounding to nearest, u.

    Example:
        >>> unit_roundoff(torch.float64) == 2.0**-53
        True
    """
    return torch.finfo(dtype).eps / 2


def accumulated_roundoff(operations: int, dtype: torch.dtype) -> float:
    """Relative error of a chain of ``operations`` roundings, with respect to the sum of magnitudes.

    The probabilistic bound ``exp(λ √k u + k u² / (1 - u)) - 1``, which holds for any order of summation.

    Args:
        operations: number k of roundings on the longest path from an input to the result.
        dtype: floating point type of the program.

    Reference:
        Higham and Mary, A new approach to probabilistic rounding error analysis, 2019, theorem 2.4.

    Example:
        >>> accumulated_roundoff(100, torch.float32) < 1e-5
        True
    """
    u = unit_roundoff(dtype)
    return math.expm1(CONFIDENCE * math.sqrt(operations) * u + operations * u * u / (1 - u))


_TRAINING_ROUNDINGS = 10**5
"""Roundings on the longest path through a short training: thirty steps with sums of some three thousand terms."""


def training_roundoff(dtype: torch.dtype) -> float:
    """Return how far a short training in ``dtype`` can be from the same training in real arithmetic.

    Bounds contain runs in real arithmetic. A run on hardware can leave a bound that it attains, by rounding alone. The
    slack is relative to the largest magnitude of a parameter, not to each element: a float sum errs relative to the
    sizes of its terms, and an element that they cancel to is no measure of them.

    Example:
        >>> 1e-13 < training_roundoff(torch.float64) < 1e-12
        True
    """
    return accumulated_roundoff(_TRAINING_ROUNDINGS, dtype)


def round_down(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Largest tensor of ``dtype`` that is nowhere above ``value``."""
    cast = value.to(dtype)
    return torch.where(cast > value, torch.nextafter(cast, torch.full_like(cast, -torch.inf)), cast)


def round_up(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Smallest tensor of ``dtype`` that is nowhere below ``value``."""
    cast = value.to(dtype)
    return torch.where(cast < value, torch.nextafter(cast, torch.full_like(cast, torch.inf)), cast)
