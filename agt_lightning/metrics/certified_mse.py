"""Certified mean squared error as a metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agt_lightning.metrics.certificate_metric import CertificateMetric
from agt_lightning.metrics.functional.certified_mse import _certified_mse_compute, _certified_mse_update


class CertifiedMSE(CertificateMetric):
    r"""Compute an upper bound on the mean squared error of every model within the bounds.

    .. math::
        \frac{1}{M} \sum_{i=1}^M \max\{(f_i^L - y_i)^2, (f_i^U - y_i)^2\}

    over all M elements; each output of a sample counts. The sum is taken in float64 and rounded outward; a narrower
    ``set_dtype`` voids that. A NaN or infinite bound or target makes the result infinite.

    As input to ``forward`` and ``update``:

    - ``lower``: lower bounds of the outputs, any shape, in units of the target.
    - ``upper``: upper bounds, of the same shape and dtype.
    - ``target``: the values to predict, of exactly the same shape: ``(N, 1)`` does not match ``(N,)``.

    As output of ``forward`` and ``compute``: a float64 scalar in squared units of the target; infinite for no elements.

    Args:
        kwargs: passed to `torchmetrics.Metric`.

    Raises:
        TypeError: in ``update``, if a bound is not of a floating point type.
        ValueError: in ``update``, if shapes do not match.
        UnsoundBoundError: in ``update``, if a lower bound exceeds its upper bound.

    Reference:
        Paper, equations 11, 16 and 22.

    Example:
        >>> metric = CertifiedMSE()
        >>> metric(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0]))
        tensor(2.5000, dtype=torch.float64)
    """

    is_differentiable = True
    higher_is_better = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sums("certified_mse_squared_error", "certified_mse_total", torch.tensor(0.0, dtype=torch.float64))

    def update(self, lower: Tensor, upper: Tensor, target: Tensor) -> None:
        """Add the worst squared errors of a batch."""
        self.accumulate(*_certified_mse_update(lower, upper, target))

    def compute(self) -> Tensor:
        """Return an upper bound on the mean squared error of all elements so far."""
        return _certified_mse_compute(*self.sums)
