"""Validation of the bounds that a metric receives."""

from __future__ import annotations

import torch
from torch import Tensor

from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval


def checked_bounds(lower: Tensor, upper: Tensor) -> Interval:
    """Return an interval of bounds, which may be NaN or infinite (no certificate holds there) but not crossed.

    Args:
        lower: lower bounds of the outputs, any shape, floating point.
        upper: upper bounds, of the same shape and dtype.

    Raises:
        TypeError: if a bound is not a floating point tensor, or the dtypes differ.
        ValueError: if the shapes differ.
        UnsoundBoundError: if a lower bound exceeds its upper bound.

    Example:
        >>> checked_bounds(torch.tensor([0.0, float("nan")]), torch.tensor([1.0, 1.0]))
        Interval(lower=tensor([0., nan]), upper=tensor([1., 1.]))
    """
    if not (isinstance(lower, Tensor) and isinstance(upper, Tensor) and lower.is_floating_point()):
        raise TypeError(f"Expected floating point tensors, but got `lower` {_kind(lower)} and `upper` {_kind(upper)}.")
    if lower.dtype != upper.dtype:
        raise TypeError(f"Expected bounds of one dtype, but got `lower` {lower.dtype} and `upper` {upper.dtype}.")
    if lower.shape != upper.shape:
        raise ValueError(
            f"Expected `lower` and `upper` of one shape, but got {tuple(lower.shape)} and {tuple(upper.shape)}."
        )
    _check_order(lower, upper)
    return Interval.trusted(lower, upper)


def _check_order(lower: Tensor, upper: Tensor) -> None:
    crossed = lower > upper
    if not bool(crossed.any()):
        return
    excess = torch.where(crossed, lower - upper, 0.0)
    index = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    raise UnsoundBoundError(
        f"Expected `lower` <= `upper`, but got [{lower[index].item()}, {upper[index].item()}] at index {index} "
        f"({int(crossed.sum())} of {crossed.numel()} elements). Pass the lower bounds first; if they are, a bound was "
        "broken: please report it."
    )


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
