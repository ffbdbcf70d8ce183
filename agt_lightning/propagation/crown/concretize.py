"""The largest value of a linear form over the box of a value, and over its ball if it has one."""

import torch
from torch import Tensor

from agt_lightning.arithmetic.norms import dual_norm
from agt_lightning.interval import Interval, LpBall


def largest(coefficient: Tensor, value: Interval) -> Tensor:
    """Return ``max ⟨Λ_r, v⟩`` over v in its box, or in its ball if that is smaller.

    Over the box it is ``⟨Λ, center⟩ + ⟨|Λ|, radius⟩``; over a ball ``x + s ∘ u`` it is ``⟨Λ, x⟩ + ‖Λ ∘ s‖_{p*}``, the
    dual norm.

    Args:
        coefficient: Λ, (b, r, *shape).
        value: (b, *shape).

    Returns:
        (b, r)

    Reference:
        docs/theory.md, eq. (12.5).

    Example:
        >>> largest(torch.tensor([[[1.0, -2.0]]]), Interval(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 2.0]])))
        tensor([[1.]])
    """
    bound = inner(coefficient, value.center)
    if not value.is_point:
        bound = bound + inner(coefficient.abs(), value.radius)
    return bound if value.ball is None else torch.minimum(bound, _largest_in_ball(coefficient, value.ball))


def inner(coefficient: Tensor, value: Tensor) -> Tensor:
    """Return ``⟨Λ_r, v⟩``: (b, r, *shape) and (b, *shape) to (b, r).

    Example:
        >>> inner(torch.ones(1, 2, 3), torch.ones(4, 3)).shape
        torch.Size([4, 2])
    """
    rows, vectors = flat_rows(coefficient), value.reshape(len(value), -1)
    if len(rows) == 1:
        shared: Tensor = vectors @ rows[0].T
        return shared
    products: Tensor = (rows @ vectors.unsqueeze(2)).squeeze(2)
    return products


def flat_rows(coefficient: Tensor) -> Tensor:
    """Flatten (b, r, *shape) to (b, r, k), also for values of one number per sample."""
    return coefficient.reshape(*coefficient.shape[:2], -1)


def _largest_in_ball(coefficient: Tensor, ball: LpBall) -> Tensor:
    scaled = flat_rows(coefficient * ball.scale)
    radius = dual_norm(scaled.flatten(0, 1), ball.p).reshape(scaled.shape[:2])
    return inner(coefficient, ball.nominal) + radius
