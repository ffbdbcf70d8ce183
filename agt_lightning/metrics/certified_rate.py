"""Certified rate as a metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agt_lightning.metrics.certificate_metric import CertificateMetric
from agt_lightning.metrics.functional.certified_rate import _certified_rate_compute, _certified_rate_update


class CertifiedRate(CertificateMetric):
    r"""Compute the fraction of samples whose prediction is the same for every model within the bounds, right or wrong.

    .. math::
        \frac{1}{N} \sum_{i=1}^N \mathbb{1}\big(|S'(x_i)| = 1\big)

    where S' is the set of possible classes. Ties and samples with a NaN or infinite bound are not certified.

    One logit decides by its sign. Subtract 1/2 from bounds on one probability: as they are, all mean class 1.

    As input to ``forward`` and ``update``:

    - ``lower``: lower bounds of the logits, ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for two classes.
    - ``upper``: upper bounds, of the same shape and dtype.
    - ``target``: ignored; accepted so that a `MetricCollection` can hold this metric beside others that need it.

    As output of ``forward`` and ``compute``: a scalar in [0, 1]; 0 for no samples.

    Args:
        kwargs: passed to `torchmetrics.Metric`.

    Raises:
        TypeError: in ``update``, if a bound is not of a floating point type.
        ValueError: in ``update``, if shapes do not match.
        UnsoundBoundError: in ``update``, if a lower bound exceeds its upper bound.

    Reference:
        Paper, equation 18, corrected as in `agt_lightning.certificates.possible_classes`.

    Example:
        >>> metric = CertifiedRate()
        >>> lower = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> upper = torch.tensor([[2.0, 0.5], [1.0, 2.0]])
        >>> metric(lower, upper)
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = True
    plot_upper_bound: float = 1.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sums("certified_rate_certified", "certified_rate_total", torch.tensor(0))

    def update(self, lower: Tensor, upper: Tensor, target: Tensor | None = None) -> None:
        """Count the samples of a batch."""
        self.accumulate(*_certified_rate_update(lower, upper))

    def compute(self) -> Tensor:
        """Return the certified fraction of all samples so far."""
        return _certified_rate_compute(*self.sums)
