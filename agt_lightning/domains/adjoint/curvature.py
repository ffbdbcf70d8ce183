"""Second and third derivatives of losses in the outputs of one sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm, softmax
from agt_lightning.domains.losses import HeadLoss, LogisticLoss, SoftmaxLoss, SquaredError
from agt_lightning.interval import Interval

_BERNOULLI = 1 / (6 * math.sqrt(3)) * (1 + 2.0**-40)
"""Largest ``p (1 - p) |1 - 2p|``: the third cumulant of a coin, and of the logistic loss."""

COVERED = (SquaredError, LogisticLoss, SoftmaxLoss)
"""Losses whose gradient is linear in the label and has a derivative everywhere."""


def hessian_parts(loss: HeadLoss, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``curve`` and ``rank`` with ``∂²ℓ/∂f² = diag(curve) - rank rankᵀ``, (b, K) each.

    Args:
        loss: one of `COVERED`.
        outputs: f, (b, K).

    Example:
        >>> curve, rank = hessian_parts(SoftmaxLoss(1.0), torch.zeros(1, 2, dtype=torch.float64))
        >>> torch.diag(curve[0]) - torch.outer(rank[0], rank[0])
        tensor([[ 0.2500, -0.2500],
                [-0.2500,  0.2500]], dtype=torch.float64)
    """
    zero = torch.zeros_like(outputs)
    if isinstance(loss, SoftmaxLoss):
        probability = softmax(Interval.point(outputs)).lower
        return loss.scale * probability, math.sqrt(loss.scale) * probability
    if isinstance(loss, LogisticLoss):
        return loss.scale * torch.sigmoid(outputs) * torch.sigmoid(-outputs), zero
    assert isinstance(loss, SquaredError)
    return torch.full_like(outputs, 2 * loss.scale), zero


def hessian_size(loss: HeadLoss, outputs: Tensor) -> Tensor:
    """Return ``‖diag(curve)‖ + ‖rank‖²``, (b,): what roundings of ``Λφ`` are relative to, even where parts cancel.

    Args:
        loss: one of `COVERED`.
        outputs: f, (b, K).

    Example:
        >>> hessian_size(SoftmaxLoss(1.0), torch.tensor([[100.0, 0.0]], dtype=torch.float64))
        tensor([2.], dtype=torch.float64)
    """
    curve, rank = hessian_parts(loss, outputs)
    return curve.amax(dim=1) + rank.square().sum(dim=1)


def third_derivative(loss: HeadLoss, curvature: Tensor) -> Tensor:
    """Return an upper bound on ``‖∂³ℓ/∂f³‖`` as a trilinear form, (b,), where ``‖∂²ℓ/∂f²‖`` is at most ``curvature``.

    Args:
        loss: one of `COVERED`.
        curvature: upper bound on the second derivative over the same outputs, (b,).

    Reference:
        docs/theory.md, eq. (13.5).

    Example:
        >>> third_derivative(LogisticLoss(1.0), torch.tensor([0.25, 0.01]))
        tensor([0.0962, 0.0100])
    """
    if isinstance(loss, SoftmaxLoss):
        return (math.sqrt(2) * (1 + 2.0**-40) * curvature).clamp(max=2 * math.sqrt(2) * loss.scale * _BERNOULLI)
    if isinstance(loss, LogisticLoss):
        return curvature.clamp(max=loss.scale * _BERNOULLI)
    assert isinstance(loss, SquaredError)
    return torch.zeros_like(curvature)


def third_along(loss: HeadLoss, curvature: Tensor, along: Tensor) -> Tensor:
    """Return an upper bound on ``|∂³ℓ/∂f³[a, a, v]| / ‖a‖²`` over all a, (t, Q).

    Args:
        loss: one of `COVERED`.
        curvature: upper bound on the second derivative over the same outputs, (t,).
        along: v, (t, Q, K).

    Reference:
        docs/theory.md, eq. (13.22).

    Example:
        >>> third_along(SoftmaxLoss(1.0), torch.tensor([0.1]), torch.tensor([[[1.0, 1.0, 3.0]]]))
        tensor([[0.2000]])
    """
    if isinstance(loss, SquaredError):
        return torch.zeros_like(along[:, :, 0])
    steepest = 2 * math.sqrt(2) if isinstance(loss, SoftmaxLoss) else 1.0
    everywhere = steepest * loss.scale * _BERNOULLI * euclidean_norm(along, dim=2)
    return torch.minimum(curvature[:, None] * spread(loss, along), everywhere)


def spread(loss: HeadLoss, along: Tensor) -> Tensor:
    """Return how far entries of v are apart for a softmax, or the largest size of one for a sum over outputs, (t, Q).

    It bounds ``|∂³ℓ/∂f³[a, a, v]|`` by its product with the curvature and ``‖a‖²``.

    Args:
        loss: one of `COVERED`; 0 if it has no third derivative.
        along: v, (t, Q, K).
    """
    if isinstance(loss, SquaredError):
        return torch.zeros_like(along[:, :, 0])
    if isinstance(loss, SoftmaxLoss):
        return along.amax(dim=2) - along.amin(dim=2)
    return along.abs().amax(dim=2)
