"""Certified backdoor accuracy as a metric."""

from __future__ import annotations

from typing import ClassVar

from agt_lightning.metrics.certified_accuracy import CertifiedAccuracy


class BackdoorAccuracy(CertifiedAccuracy):
    r"""Compute the fraction of samples that every model within the bounds classifies correctly under every trigger.

    .. math::
        \frac{1}{N} \sum_{i=1}^N \mathbb{1}\big(f_{y_i}^L > f_j^U \;\; \forall j \ne y_i\big), \qquad
        f^L \le f^\theta(x^*) \le f^U \;\; \forall x^* \in V(x_i), \theta \in [\theta^L, \theta^U]

    The formula is that of `CertifiedAccuracy`, applied to other bounds: the caller must compute them over the trigger
    ball V(x) around each input, as with ``bound_forward(x, epsilon=...)``. A `MetricCollection` gives the same bounds
    to all its metrics: keep this one apart from metrics of plain inputs. One minus the result bounds the success rate
    of every backdoor attack from above. Ties and samples with a NaN or infinite bound are not certified.

    One logit decides by its sign. Subtract 1/2 from bounds on one probability: as they are, all mean class 1.

    As input to ``forward`` and ``update``:

    - ``lower``: lower bounds of the logits over the trigger ball, ``(N, C)``; ``(N,)`` or ``(N, 1)`` for two classes.
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
        Paper, equation 13 and appendix B.2.

    Example:
        >>> import torch
        >>> metric = BackdoorAccuracy()
        >>> lower, upper = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 0.2, 2.0])
        >>> metric(lower, upper, torch.tensor([1, 0, 1]))
        tensor(0.3333)
    """

    _prefix: ClassVar[str] = "backdoor_accuracy"
