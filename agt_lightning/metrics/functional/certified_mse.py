"""Certified mean squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from agt_lightning.certificates.goals import squared_error_bounds
from agt_lightning.metrics.functional.averages import mean_from_above, sum_from_above
from agt_lightning.metrics.functional.bounds import checked_bounds


def certified_mse(lower: Tensor, upper: Tensor, target: Tensor) -> Tensor:
    r"""Compute an upper bound on the mean squared error of every model within the bounds.

    .. math::
        \frac{1}{M} \sum_{i=1}^M \max\{(f_i^L - y_i)^2, (f_i^U - y_i)^2\}

    over all M elements; each output of a sample counts. The bound is attained if one model attains the worst case of
    every sample. The sum is taken in float64 and rounded outward. A NaN or infinite bound or target makes the result
    infinite.

    Args:
        lower: lower bounds of the outputs, any shape, in units of the target.
        upper: upper bounds, of the same shape and dtype.
        target: the values to predict, of exactly the same shape: ``(N, 1)`` does not match ``(N,)``.

    Returns:
        Float64 scalar in squared units of the target; infinite for no elements.

    Raises:
        TypeError: if a bound is not of a floating point type.
        ValueError: if shapes do not match, or an integer target exceeds 2^53.
        UnsoundBoundError: if a lower bound exceeds its upper bound.

    Reference:
        Paper, equations 11, 16 and 22.

    Example:
        >>> lower, upper = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0])
        >>> certified_mse(lower, upper, torch.tensor([0.0, 1.0]))
        tensor(2.5000, dtype=torch.float64)
    """
    return _certified_mse_compute(*_certified_mse_update(lower, upper, target))


def _certified_mse_update(lower: Tensor, upper: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the worst squared errors and count the elements."""
    outputs = checked_bounds(lower, upper).to(dtype=torch.float64)
    return sum_from_above(squared_error_bounds(outputs, target).upper)


def _certified_mse_compute(squared_error: Tensor, total: Tensor) -> Tensor:
    return mean_from_above(squared_error, total)
