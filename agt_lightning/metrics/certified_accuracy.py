"""Certified accuracy as a metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agt_lightning.metrics.certificate_metric import CertificateMetric
from agt_lightning.metrics.functional.certified_accuracy import (
    _certified_accuracy_compute,
    _certified_accuracy_update,
)


class CertifiedAccuracy(CertificateMetric):
    r"""Fraction of samples that every model within the bounds classifies correctly.

    .. math::
        \frac{1}{N} \sum_{i=1}^N \mathbb{1}\big(f_{y_i}^L(x_i) > f_j^U(x_i) \;\; \forall j \ne y_i\big)

    A lower bound on the accuracy of every model whose logits lie in the bounds. Ties and samples with a NaN or infinite
    bound are not certified.

    As input to ``forward`` and ``update``:

    - ``lower``: lower bounds of the logits, ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for two classes.
    - ``upper``: upper bounds, of the same shape and dtype.
    - ``target``: integer classes ``(N,)``; with one logit also ``(N, 1)`` and any real type.

    As output of ``forward`` and ``compute``: a scalar in [0, 1]; 0 for no samples.

    Args:
        kwargs: passed to `torchmetrics.Metric`.

    Raises:
        TypeError: in ``update``, if a bound is not of a floating point type, or the target not of an integer type.
        ValueError: in ``update``, if shapes do not match or a class is out of range.
        UnsoundBoundError: in ``update``, if a lower bound exceeds its upper bound.

    Reference:
        Paper, section 3.5 and appendix B.2, with a strict inequality.

    Example:
        >>> metric = CertifiedAccuracy()
        >>> lower = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> upper = torch.tensor([[2.0, 0.5], [1.0, 2.0]])
        >>> metric(lower, upper, torch.tensor([0, 1]))
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = True
    plot_upper_bound: float = 1.0

    certified_accuracy_certified: Tensor
    certified_accuracy_total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("certified_accuracy_certified", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("certified_accuracy_total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, lower: Tensor, upper: Tensor, target: Tensor) -> None:
        """Count the samples of a batch."""
        certified, total = _certified_accuracy_update(lower, upper, target)
        self.certified_accuracy_certified += certified
        self.certified_accuracy_total += total

    def compute(self) -> Tensor:
        """Certified fraction of all samples so far."""
        return _certified_accuracy_compute(self.certified_accuracy_certified, self.certified_accuracy_total)
