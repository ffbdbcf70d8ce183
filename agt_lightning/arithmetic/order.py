"""Bounds that meet in real arithmetic and crossed by rounding."""

import torch
from torch import Tensor

from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff

_LONGEST_SUM = 10**7
"""Summands of the longest sum that bounds are made of; float64 keeps its rounding below 3e-12 of their size."""


def uncrossed(lower: Tensor, upper: Tensor) -> Interval:
    """The interval between two bounds; where rounding crossed them, they change places.

    Only for results whose formula proves ``lower <= upper``.

    Example:
        >>> uncrossed(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.9999999])).lower
        tensor([1.0000, 2.0000])
    """
    if _in_order(lower, upper):
        return Interval.trusted(lower, upper)
    return Interval.trusted(torch.minimum(lower, upper), torch.maximum(lower, upper))


def require_uncrossed(value: Interval) -> Interval:
    """The same bounds in order; points stay points.

    Raises:
        UnsoundBoundError: if they crossed by more than rounding: some rule is wrong.

    Example:
        >>> require_uncrossed(Interval.trusted(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.9999999]))).lower
        tensor([1.0000, 2.0000])
    """
    if value.is_point or _in_order(value.lower, value.upper):
        return value
    excess = float((value.lower - value.upper).detach().max())
    size = float(value.magnitude.detach().max())
    if excess > size * accumulated_roundoff(_LONGEST_SUM, value.dtype):
        raise UnsoundBoundError(
            f"Expected lower bounds below upper ones up to rounding, but they cross by {excess:.3g} at size {size:.3g}."
            " A rule is wrong: please report this message."
        )
    result = uncrossed(value.lower, value.upper)
    return Interval.trusted(result.lower, result.upper, nonnegative=value.nonnegative)


def _in_order(lower: Tensor, upper: Tensor) -> bool:
    """Whether no lower bound exceeds its upper one; with NaN they are not in order."""
    return not lower.numel() or float((upper - lower).detach().min()) >= 0
