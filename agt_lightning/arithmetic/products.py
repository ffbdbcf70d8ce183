"""Exact products of intervals, by sign splitting.

With ``a⁺ = max(a, 0)`` and ``a⁻ = max(-a, 0)``, the largest product of ``a ∈ [al, au]`` and ``b ∈ [bl, bu]`` is

    max(au⁺ bu⁺, al⁻ bl⁻) - al⁺ bu⁻ - au⁻ bl⁺,

and the smallest is minus the largest of ``[al, au] · [-bu, -bl]``. The maximum differs from the sum only where both
factors straddle zero. So a matrix product of intervals is four ordinary products per bound, less the correction
``Σ min(au⁺ bu⁺, al⁻ bl⁻)`` over straddling pairs. If one factor is a point or nonnegative, there is no such pair and
fewer products are enough; this holds for every bilinear map whose coefficients are nonnegative, such as a convolution.

Axis letters: ``m`` rows of the left factor, ``k`` inner dimension, ``n`` columns of the right one.

Reference:
    Paper, appendix C.1, which allows any interval matrix product. This one has no excess width, whereas the product of
    midpoints and radii (Rump 1999) overestimates the radius by a factor of up to 1.5.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from agt_lightning.arithmetic.order import uncrossed
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff


def multiply(a: Interval, b: Interval) -> Interval:
    """Return the element-wise product of independent intervals; exact.

    Args:
        a: first factor.
        b: second factor, of a shape that broadcasts with the first.

    Example:
        >>> multiply(Interval(torch.tensor(-1.0), torch.tensor(2.0)), Interval(torch.tensor(-3.0), torch.tensor(1.0)))
        Interval(lower=tensor(-6.), upper=tensor(3.))
    """
    if a.is_point and b.is_point:
        return Interval.point(a.lower * b.lower, nonnegative=a.nonnegative and b.nonnegative)
    if a.is_point:
        return _multiply_by_point(b, a.lower, nonnegative=a.nonnegative)
    if b.is_point:
        return _multiply_by_point(a, b.lower, nonnegative=b.nonnegative)
    if a.nonnegative:
        return _multiply_by_nonnegative(b, a)
    if b.nonnegative:
        return _multiply_by_nonnegative(a, b)
    products = (a.lower * b.lower, a.lower * b.upper, a.upper * b.lower, a.upper * b.upper)
    lower = torch.minimum(torch.minimum(products[0], products[1]), torch.minimum(products[2], products[3]))
    upper = torch.maximum(torch.maximum(products[0], products[1]), torch.maximum(products[2], products[3]))
    return Interval.trusted(lower, upper)


def _multiply_by_nonnegative(a: Interval, factor: Interval) -> Interval:
    """Each bound of the product comes from the same bound of ``a``."""
    upper = torch.maximum(a.upper * factor.upper, a.upper * factor.lower)
    lower = torch.minimum(a.lower * factor.upper, a.lower * factor.lower)
    return Interval.trusted(lower, upper, nonnegative=a.nonnegative)


def _multiply_by_point(interval: Interval, factor: Tensor, *, nonnegative: bool) -> Interval:
    at_lower, at_upper = factor * interval.lower, factor * interval.upper
    if nonnegative:
        return Interval.trusted(at_lower, at_upper, nonnegative=interval.nonnegative)
    return Interval.trusted(torch.minimum(at_lower, at_upper), torch.maximum(at_lower, at_upper))


def product(a: Interval, b: Interval) -> Interval:
    """Return the matrix product ``A B`` of independent intervals; exact, so never wider than any other enclosure.

    Args:
        a: (..., m, k).
        b: (..., k, n); batch axes broadcast.

    Returns:
        The smallest interval, (..., m, n), that contains ``A B`` for all A in ``a`` and B in ``b``.

    Example:
        >>> a, b = Interval(-torch.ones(1, 2), torch.ones(1, 2)), Interval(-torch.ones(2, 1), 2 * torch.ones(2, 1))
        >>> product(a, b).upper
        tensor([[4.]])
    """
    if splits(a, b):
        return split_product(torch.matmul, a, b, terms=a.shape[-1])
    return uncrossed(_largest_products(a, -b).neg_(), _largest_products(a, b))  # the two sum in different orders


def splits(a: Interval, b: Interval) -> bool:
    """Return whether no pair of factors can straddle zero twice, so that sign splitting is exact."""
    return a.is_point or b.is_point or a.nonnegative or b.nonnegative


def split_product(bilinear: Callable[[Tensor, Tensor], Tensor], a: Interval, b: Interval, *, terms: int) -> Interval:
    """Return bounds on a bilinear map with nonnegative coefficients, of factors that `splits` accepts.

    For a point a: center ``a·b_c`` and radius ``|a|·b_r``, widened by their rounding. For a ≥ 0: upper
    ``au·bu⁺ - al·bu⁻``, lower ``al·bl⁺ - au·bl⁻``; exact.

    The sum of center and radius is off relatively to ``|a| max(|bl|, |bu|)``, which can be more than both of its ends,
    so that widening a factor relatively does not cover it (docs/floats.md, section 1); all other sums here are of
    products of ends.

    Args:
        bilinear: the map, such as `torch.matmul`; it returns a new tensor.
        a: first factor.
        b: second factor, independent of the first.
        terms: number of products in an element of the result.

    Example:
        >>> near = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
        >>> split_product(torch.mm, near, Interval.point(torch.tensor([[-2.0]])), terms=1)
        Interval(lower=tensor([[-4.0000]]), upper=tensor([[-2.0000]]))
    """
    if a.is_point and b.is_point:
        return Interval.point(bilinear(a.lower, b.lower), nonnegative=a.nonnegative and b.nonnegative)
    if not (a.is_point or (a.nonnegative and not b.is_point)):
        return split_product(lambda first, second: bilinear(second, first), b, a, terms=terms)
    if a.is_point and not a.nonnegative:
        own, middle = accumulated_roundoff(2 * terms + 16, b.dtype), b.center
        radii = (b.upper - b.lower).mul_(0.5 * (1 + own)).add_(middle.abs(), alpha=own)
        center, radius = bilinear(a.lower, middle), bilinear(a.lower.abs(), radii)
        return Interval.trusted(center - radius, radius.add_(center))
    if a.is_point or b.nonnegative:
        return Interval.trusted(bilinear(a.lower, b.lower), bilinear(a.upper, b.upper), nonnegative=b.nonnegative)
    upper = bilinear(a.upper, b.upper.clamp(min=0)).add_(bilinear(a.lower, b.upper.clamp(max=0)))
    lower = bilinear(a.lower, b.lower.clamp(min=0)).add_(bilinear(a.upper, b.lower.clamp(max=0)))
    return uncrossed(lower, upper)


def _largest_products(a: Interval, b: Interval) -> Tensor:
    """``Σ_k max a_k b_k``: four products as one of four times the inner size, then the straddling correction."""
    a_above, a_below = a.upper.clamp(min=0), a.lower.clamp(max=0)
    b_above, b_below = b.upper.clamp(min=0), b.lower.clamp(max=0)
    left = torch.cat([a_above, a_below, a.lower.clamp(min=0), a.upper.clamp(max=0)], dim=-1)
    total = left @ _rows_below([b_above, b_below, b.upper.clamp(max=0), b.lower.clamp(min=0)])
    # Where a does not straddle zero, one of the first two products is zero and the sum is the maximum already.
    for k in _doubly_straddling(a, b):
        _subtract_smaller(total, (a_above[..., k], a_below[..., k]), (b_above[..., k, :], b_below[..., k, :]))
    return total


def _rows_below(parts: list[Tensor]) -> Tensor:
    """Stack matrices below each other, in the memory order that they have."""
    if parts[0].mT.is_contiguous():
        return torch.cat([part.mT for part in parts], dim=-1).mT
    return torch.cat(parts, dim=-2)


def _doubly_straddling(a: Interval, b: Interval) -> list[int]:
    """Return inner indices at which some pair of factors straddles zero twice."""
    in_a = ((a.lower < 0) & (a.upper > 0)).any(dim=-2)
    in_b = ((b.lower < 0) & (b.upper > 0)).any(dim=-1)
    both = in_a & in_b
    indices: list[int] = (both.flatten(0, -2).any(dim=0) if both.ndim > 1 else both).nonzero().squeeze(1).tolist()
    return indices


def _subtract_smaller(total: Tensor, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    """Subtract ``min(a⁺ b⁺, a⁻ b⁻)`` in place, for one inner index.

    Args:
        total: (..., m, n).
        a: positive part of the upper bounds and negative part of the lower ones, each (..., m).
        b: likewise, each (..., n).
    """
    if total.ndim > 2:
        above, below = (x[..., :, None] * y[..., None, :] for x, y in zip(a, b, strict=True))
        total -= torch.minimum(above, below)
        return
    rows, columns = (((above > 0) & (below < 0)).nonzero().squeeze(1) for above, below in (a, b))
    smaller = torch.minimum(*(torch.outer(x[rows], y[columns]) for x, y in zip(a, b, strict=True)))
    if len(columns) == total.shape[1]:
        total.index_add_(0, rows, smaller, alpha=-1)
    else:
        total[rows[:, None], columns] -= smaller
