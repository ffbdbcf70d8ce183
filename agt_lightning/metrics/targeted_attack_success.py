"""Success rate of targeted attacks as a metric."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agt_lightning.metrics.certificate_metric import CertificateMetric
from agt_lightning.metrics.functional.targeted_attack_success import (
    _targeted_attack_success_compute,
    _targeted_attack_success_update,
    checked_safe_classes,
)


class TargetedAttackSuccess(CertificateMetric):
    r"""Compute an upper bound on the rate of predictions that an attacker can move out of their safe sets.

    .. math::
        \frac{1}{N} \sum_{i=1}^N \mathbb{1}\big(S'(x_i) \not\subseteq S(y_i)\big)

    where S' is the set of possible classes and S(y) the set of predictions that are safe for true class y. A sample
    that is predicted wrongly without any attack counts too. Ties and NaN or infinite bounds count as success.

    One logit decides by its sign. Subtract 1/2 from bounds on one probability: as they are, all mean class 1.

    As input to ``forward`` and ``update``:

    - ``lower``: lower bounds of the logits, ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for two classes.
    - ``upper``: upper bounds, of the same shape and dtype.
    - ``target``: integer classes ``(N,)``; with one logit also ``(N, 1)`` and any real type.

    As output of ``forward`` and ``compute``: a scalar in [0, 1]; 1 for no samples.

    Args:
        safe_classes: for each true class, the predictions that are safe; by default only the true class itself.
        kwargs: passed to `torchmetrics.Metric`.

    Raises:
        TypeError: in ``update``, if a bound is not of a floating point type, or the target not of an integer type.
        ValueError: if a safe prediction is not a class; in ``update``, if shapes do not match, or a class is out of
            range or has no safe set.
        UnsoundBoundError: in ``update``, if a lower bound exceeds its upper bound.

    Reference:
        Paper, equations 12 and 17.

    Example:
        >>> metric = TargetedAttackSuccess(safe_classes=[[0, 1], [1], [2]])
        >>> lower = torch.tensor([[1.0, 0.5, -1.0], [1.0, 0.5, -1.0]])
        >>> upper = torch.tensor([[2.0, 1.5, 0.0], [2.0, 1.5, 0.0]])
        >>> metric(lower, upper, torch.tensor([0, 2]))
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = False
    plot_upper_bound: float = 1.0

    def __init__(self, safe_classes: Sequence[Sequence[int]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.safe_classes = None if safe_classes is None else checked_safe_classes(safe_classes)
        # Metrics with different safe sets must not share state names: see `CertificateMetric`.
        key = hashlib.sha256(repr(self.safe_classes).encode()).hexdigest()[:16]
        prefix = "targeted_attack_success"
        self.add_sums(f"{prefix}_reached_{key}", f"{prefix}_total_{key}", torch.tensor(0))

    def update(self, lower: Tensor, upper: Tensor, target: Tensor) -> None:
        """Count the samples of a batch."""
        self.accumulate(*_targeted_attack_success_update(lower, upper, target, self.safe_classes))

    def compute(self) -> Tensor:
        """Return the upper bound on the success rate over all samples so far."""
        return _targeted_attack_success_compute(*self.sums)
