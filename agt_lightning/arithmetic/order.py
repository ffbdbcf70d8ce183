"""Bounds that are ordered in real arithmetic but may be crossed by rounding."""

import torch
from torch import Tensor

from agt_lightning.arithmetic.compiled import in_order, readable
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.rounding import unit_roundoff

_LONGEST_SUM = 10**7
"""Number of summands of the longest sum in a bound; in float64 its rounding error stays below 3e-12 of their size."""


def uncrossed(lower: Tensor, upper: Tensor) -> Interval:
    """Return the interval between two bounds; where rounding crossed them, they change places.

    Only for results whose formula proves ``lower <= upper``.

    Args:
        lower: lower bounds, up to rounding.
        upper: upper bounds, of the same shape.

    Example:
        >>> uncrossed(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.9999999])).lower
        tensor([1.0000, 2.0000])
    """
    if _in_order(lower, upper):
        return Interval.trusted(lower, upper)
    return Interval.trusted(torch.minimum(lower, upper), torch.maximum(lower, upper))


def require_uncrossed(value: Interval) -> Interval:
    """Return the same bounds in order; points stay points.

    Args:
        value: bounds that may be crossed by rounding.

    Raises:
        UnsoundBoundError: if they cross by more than rounding, which means that a rule is wrong.

    Example:
        >>> require_uncrossed(Interval.trusted(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.9999999]))).lower
        tensor([1.0000, 2.0000])
    """
    if value.is_point or _in_order(value.lower, value.upper):
        return value
    excess = float((value.lower - value.upper).detach().max())
    size = float(value.magnitude.detach().max())
    if excess > size * min(1.0, _LONGEST_SUM * unit_roundoff(value.dtype)):
        raise UnsoundBoundError(
            f"Expected lower bounds below upper ones up to rounding, but they cross by {excess:.3g} at size {size:.3g}."
            " A rule is wrong: please report this message."
        )
    result = uncrossed(value.lower, value.upper)
    return Interval.trusted(result.lower, result.upper, nonnegative=value.nonnegative)


def intersection(a: Interval, b: Interval) -> Interval:
    """Return the intersection of two enclosures; where rounding made them miss each other, the gap between them.

    Args:
        a: bounds.
        b: other bounds on the same values.

    Example:
        >>> a = Interval(torch.tensor([0.0]), torch.tensor([2.0]))
        >>> intersection(a, Interval(torch.tensor([1.0]), torch.tensor([3.0])))
        Interval(lower=tensor([1.]), upper=tensor([2.]))
    """
    return uncrossed(torch.maximum(a.lower, b.lower), torch.minimum(a.upper, b.upper))


def _in_order(lower: Tensor, upper: Tensor) -> bool:
    """Return whether no lower bound exceeds its upper one; bounds with NaN are not in order."""
    if readable(lower, upper) and lower.is_contiguous() and upper.is_contiguous():
        return bool(in_order(lower.detach().numpy().reshape(-1), upper.detach().numpy().reshape(-1)))
    return not lower.numel() or float((upper - lower).detach().min()) >= 0
