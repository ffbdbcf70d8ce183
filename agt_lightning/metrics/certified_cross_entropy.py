"""Certified cross-entropy as a metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agt_lightning.metrics.certificate_metric import CertificateMetric
from agt_lightning.metrics.functional.certified_cross_entropy import (
    _certified_cross_entropy_compute,
    _certified_cross_entropy_update,
)


class CertifiedCrossEntropy(CertificateMetric):
    r"""Compute an upper bound on the mean cross-entropy of every model within the bounds.

    .. math::
        \frac{1}{N} \sum_{i=1}^N \log\Big(1 + \sum_{j \ne y_i} e^{f_j^U(x_i) - f_{y_i}^L(x_i)}\Big)

    and the logistic loss for one logit. The sum is taken in float64 and rounded outward; a narrower ``set_dtype`` voids
    that. A NaN or infinite bound makes the result infinite.

    As input to ``forward`` and ``update``:

    - ``lower``: lower bounds of the logits, ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for two classes.
    - ``upper``: upper bounds, of the same shape and dtype.
    - ``target``: integer classes ``(N,)``; with one logit also ``(N, 1)`` and any real type, 0 or 1.

    As output of ``forward`` and ``compute``: a float64 scalar in nats per sample; infinite for no samples.

    Args:
        kwargs: passed to `torchmetrics.Metric`.

    Raises:
        TypeError: in ``update``, if a bound is not of a floating point type, or the target not of an integer type.
        ValueError: in ``update``, if shapes do not match or a class is out of range.
        UnsoundBoundError: in ``update``, if a lower bound exceeds its upper bound.

    Reference:
        Paper, equations 11 and 16 and appendix C.3, with the term of the true class corrected.

    Example:
        >>> metric = CertifiedCrossEntropy()
        >>> metric(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        tensor(0.6931, dtype=torch.float64)
    """

    is_differentiable = True
    higher_is_better = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sums(
            "certified_cross_entropy_loss", "certified_cross_entropy_total", torch.tensor(0.0, dtype=torch.float64)
        )

    def update(self, lower: Tensor, upper: Tensor, target: Tensor) -> None:
        """Add the worst losses of a batch."""
        self.accumulate(*_certified_cross_entropy_update(lower, upper, target))

    def compute(self) -> Tensor:
        """Return an upper bound on the mean loss of all samples so far."""
        return _certified_cross_entropy_compute(*self.sums)
