"""Floating point: outward rounding, and the largest error of many roundings (docs/floats.md)."""

from typing import Literal, get_args

import torch
from torch import Tensor

from agt_lightning.errors import UncertifiableError

Floats = Literal["run", "real"]
"""``"run"``: bounds contain every run as hardware executes it; ``"real"``: every run in real arithmetic."""

FLOATS: tuple[Floats, ...] = get_args(Floats)

_UPWARD = 1 + 2.0**-48
"""Factor that covers the rounding of a few operations on Python's own numbers."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """Return u, the largest relative error of one rounding to nearest.

    Example:
        >>> unit_roundoff(torch.float64) == 2.0**-53
        True
    """
    return torch.finfo(dtype).eps / 2


def accumulated_roundoff(operations: int, dtype: torch.dtype) -> float:
    """Return γ_k = k u / (1 - k u), the largest relative error of a product of k factors 1 + δ with |δ| <= u.

    A sum of products with k roundings on the way of each summand, in any order and blocking, with or without fused
    multiplications, differs from the exact one by at most γ_k times the sum of the magnitudes (without underflow).

    Args:
        operations: number k of roundings on the longest path from an input to the result.
        dtype: floating point type of the computation.

    Raises:
        UncertifiableError: if so many roundings can leave no correct digit.

    Reference:
        Higham, Accuracy and Stability of Numerical Algorithms, 2002, lemma 3.1 and section 4.2.

    Example:
        >>> accumulated_roundoff(100, torch.float64) < 1.2e-14
        True
    """
    error = operations * unit_roundoff(dtype)
    if error >= 0.5:
        raise UncertifiableError(
            [
                f"A sum of {operations} rounded numbers in {str(dtype).removeprefix('torch.')} can have no correct "
                "digit. Use smaller batches, or train in float64."
            ]
        )
    return error / (1 - error) * _UPWARD


def round_down(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the largest tensor of ``dtype`` that is nowhere above ``value``."""
    cast = value.to(dtype)
    return torch.where(cast > value, torch.nextafter(cast, torch.full_like(cast, -torch.inf)), cast)


def round_up(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the smallest tensor of ``dtype`` that is nowhere below ``value``."""
    cast = value.to(dtype)
    return torch.where(cast < value, torch.nextafter(cast, torch.full_like(cast, torch.inf)), cast)
