"""Exact products of intervals, by sign splitting.

With ``a⁺ = max(a, 0)`` and ``a⁻ = max(-a, 0)``, the largest product of ``a ∈ [al, au]`` and ``b ∈ [bl, bu]`` is

    max(au⁺ bu⁺, al⁻ bl⁻) - al⁺ bu⁻ - au⁻ bl⁺,

and the smallest is minus the largest of ``[al, au] · [-bu, -bl]``. The maximum differs from the sum only where both
factors straddle zero. So a matrix product of intervals is four ordinary products per bound, less the correction
``Σ min(au⁺ bu⁺, al⁻ bl⁻)`` over straddling pairs; factors of known sign, and points, save products.

Reference:
    Sign splitting: paper, appendix C.1 asks for any interval matrix product; this one has no excess width, where
    midpoint-radius (Rump 1999) overestimates the radius by up to 1.5.
"""

import torch
from torch import Tensor

from agt_lightning.arithmetic.order import uncrossed
from agt_lightning.interval import Interval


def multiply(a: Interval, b: Interval) -> Interval:
    """Element-wise product of independent intervals, with broadcasting; exact.

    Example:
        >>> multiply(Interval(torch.tensor(-1.0), torch.tensor(2.0)), Interval(torch.tensor(-3.0), torch.tensor(1.0)))
        Interval(lower=tensor(-6.), upper=tensor(3.))
    """
    if a.is_point and b.is_point:
        return Interval.point(a.lower * b.lower, nonnegative=a.nonnegative and b.nonnegative)
    if a.is_point:
        return _scale(b, a.lower, nonnegative=a.nonnegative)
    if b.is_point:
        return _scale(a, b.lower, nonnegative=b.nonnegative)
    if a.nonnegative:
        return _scale_by_nonnegative(b, a)
    if b.nonnegative:
        return _scale_by_nonnegative(a, b)
    products = (a.lower * b.lower, a.lower * b.upper, a.upper * b.lower, a.upper * b.upper)
    lower = torch.minimum(torch.minimum(products[0], products[1]), torch.minimum(products[2], products[3]))
    upper = torch.maximum(torch.maximum(products[0], products[1]), torch.maximum(products[2], products[3]))
    return Interval.trusted(lower, upper)


def _scale_by_nonnegative(a: Interval, factor: Interval) -> Interval:
    """Each bound of the product comes from the same bound of ``a``."""
    upper = torch.maximum(a.upper * factor.upper, a.upper * factor.lower)
    lower = torch.minimum(a.lower * factor.upper, a.lower * factor.lower)
    return Interval.trusted(lower, upper, nonnegative=a.nonnegative)


def _scale(interval: Interval, factor: Tensor, *, nonnegative: bool) -> Interval:
    at_lower, at_upper = factor * interval.lower, factor * interval.upper
    if nonnegative:
        return Interval.trusted(at_lower, at_upper, nonnegative=interval.nonnegative)
    return Interval.trusted(torch.minimum(at_lower, at_upper), torch.maximum(at_lower, at_upper))


def matmul(a: Interval, b: Interval) -> Interval:
    """Matrix product ``a bᵀ`` of independent intervals; exact, so never wider than any other enclosure.

    Args:
        a: rows, (b, k).
        b: rows, (o, k); the layout of `torch.nn.Linear.weight`.

    Returns:
        Interval of shape (b, o): the smallest that contains ``A Bᵀ`` for all A in ``a`` and B in ``b``.

    Example:
        >>> a, b = Interval(-torch.ones(1, 2), torch.ones(1, 2)), Interval(-torch.ones(1, 2), 2 * torch.ones(1, 2))
        >>> matmul(a, b).upper
        tensor([[4.]])
    """
    if a.is_point and b.is_point:
        return Interval.point(a.lower @ b.lower.T, nonnegative=a.nonnegative and b.nonnegative)
    if a.is_point:
        return _point_matmul(a.lower, b, nonnegative=a.nonnegative)
    if b.is_point:
        return _transposed(_point_matmul(b.lower, a, nonnegative=b.nonnegative))
    if a.nonnegative:
        return _nonnegative_matmul(a, b)
    if b.nonnegative:
        return _transposed(_nonnegative_matmul(b, a))
    return _general_matmul(a, b)


def _point_matmul(a: Tensor, b: Interval, *, nonnegative: bool) -> Interval:
    """Two products: ``a bu`` and ``a bl`` for ``a >= 0``, else the exact center and radius."""
    if nonnegative:
        return Interval.trusted(a @ b.lower.T, a @ b.upper.T, nonnegative=b.nonnegative)
    center, radius = a @ b.center.T, a.abs() @ b.radius.T
    return Interval.trusted(center - radius, center + radius)


def _nonnegative_matmul(a: Interval, b: Interval) -> Interval:
    """``a >= 0``: upper ``au bu⁺ - al bu⁻``, lower ``al bl⁺ - au bl⁻``; neither factor pair straddles twice."""
    if b.nonnegative:
        return Interval.trusted(a.lower @ b.lower.T, a.upper @ b.upper.T, nonnegative=True)
    upper = (a.upper @ b.upper.clamp(min=0).T).addmm_(a.lower, b.upper.clamp(max=0).T)
    lower = (a.lower @ b.lower.clamp(min=0).T).addmm_(a.upper, b.lower.clamp(max=0).T)
    return uncrossed(lower, upper)


def _general_matmul(a: Interval, b: Interval) -> Interval:
    upper = _largest_products(a, b)
    lower = _largest_products(a, -b).neg_()
    return uncrossed(lower, upper)  # the two sum in different orders


def _largest_products(a: Interval, b: Interval) -> Tensor:
    """``Σ_k max a_k b_k``: four products as one of four times the inner size, then the straddling correction."""
    rising, falling = a.upper.clamp(min=0), a.lower.clamp(max=0)
    left = torch.cat([rising, falling, a.lower.clamp(min=0), a.upper.clamp(max=0)], dim=1)
    right = torch.cat([b.upper.clamp(min=0), b.lower.clamp(max=0), b.upper.clamp(max=0), b.lower.clamp(min=0)], dim=1)
    total = left @ right.T
    # Where a does not straddle zero, one of the first two products is zero and the sum is the maximum already.
    for k in _doubly_straddling(a, b):
        rows = ((a.lower[:, k] < 0) & (a.upper[:, k] > 0)).nonzero().squeeze(1)
        columns = ((b.lower[:, k] < 0) & (b.upper[:, k] > 0)).nonzero().squeeze(1)
        both_high = torch.outer(a.upper[rows, k], b.upper[columns, k])
        both_low = torch.outer(a.lower[rows, k], b.lower[columns, k])
        excess = torch.minimum(both_high, both_low)
        if len(columns) == total.shape[1]:
            total.index_add_(0, rows, excess, alpha=-1)
        else:
            total[rows[:, None], columns] -= excess
    return total


def _doubly_straddling(a: Interval, b: Interval) -> list[int]:
    """Inner indices at which some entry of ``a`` and some entry of ``b`` straddle zero."""
    in_a = ((a.lower < 0) & (a.upper > 0)).any(dim=0)
    in_b = ((b.lower < 0) & (b.upper > 0)).any(dim=0)
    indices: list[int] = (in_a & in_b).nonzero().squeeze(1).tolist()
    return indices


def _transposed(interval: Interval) -> Interval:
    lower = interval.lower.T
    return Interval.trusted(lower, lower if interval.is_point else interval.upper.T, nonnegative=interval.nonnegative)
