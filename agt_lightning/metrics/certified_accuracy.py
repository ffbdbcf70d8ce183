"""Certified accuracy as a metric."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from agt_lightning.metrics.certificate_metric import CertificateMetric
from agt_lightning.metrics.functional.certified_accuracy import (
    _certified_accuracy_compute,
    _certified_accuracy_update,
)


class CertifiedAccuracy(CertificateMetric):
    r"""Compute the fraction of samples that every model within the bounds classifies correctly.

    .. math::
        \frac{1}{N} \sum_{i=1}^N \mathbb{1}\big(f_{y_i}^L(x_i) > f_j^U(x_i) \;\; \forall j \ne y_i\big)

    The result is a lower bound on the accuracy of every model whose logits lie in the bounds. Ties and samples with a
    NaN or infinite bound are not certified.

    One logit decides by its sign. Subtract 1/2 from bounds on one probability: as they are, all mean class 1.

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

    _prefix: ClassVar[str] = "certified_accuracy"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sums(f"{self._prefix}_certified", f"{self._prefix}_total", torch.tensor(0))

    def update(self, lower: Tensor, upper: Tensor, target: Tensor) -> None:
        """Count the samples of a batch."""
        self.accumulate(*_certified_accuracy_update(lower, upper, target))

    def compute(self) -> Tensor:
        """Return the certified fraction of all samples so far."""
        return _certified_accuracy_compute(*self.sums)
