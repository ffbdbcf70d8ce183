"""Affine images of norm balls."""

import math

import torch
from torch import Tensor

from agt_lightning.arithmetic.products import product
from agt_lightning.interval import Interval, LpBall


def euclidean_norm(values: Tensor, dim: int | None = None) -> Tensor:
    """Return the Euclidean norm of all values, or along an axis; also where their squares underflow.

    It is right to the roundings of a sum of squares and three more.

    Args:
        values: of any shape.
        dim: the axis; None means all values.

    Example:
        >>> tiny = torch.tensor([[3e-200, 4e-200]], dtype=torch.float64)
        >>> bool((euclidean_norm(tiny, dim=1) / 5e-200 - 1).abs() < 1e-15), tiny.norm(dim=1).item()
        (True, 0.0)
    """
    if dim is None:
        return euclidean_norm(values.flatten(), dim=0)
    norm: Tensor = torch.linalg.vector_norm(values, dim=dim)
    limits = torch.finfo(values.dtype)
    small = norm < math.sqrt(max(values.shape[dim], 1) * limits.tiny / limits.eps)  # here squares can lose digits
    if not values.shape[dim] or not bool(small.any()):
        return norm
    vectors = values.movedim(dim, -1)[small]
    largest = vectors.abs().amax(dim=-1, keepdim=True)
    unit = torch.where(largest > 0, largest, 1.0)
    return norm.masked_scatter(small, unit[..., 0] * torch.linalg.vector_norm(vectors / unit, dim=-1))


def dual_norm(rows: Tensor, p: float) -> Tensor:
    """Return ``‖row‖_{p*}`` with 1/p + 1/p* = 1, the largest ``row · u`` over ``‖u‖_p <= 1``.

    Args:
        rows: one vector per row, (o, k).
        p: 1, 2 or infinity.

    Returns:
        (o,)

    Example:
        >>> rows = torch.tensor([[3.0, -4.0]])
        >>> [dual_norm(rows, p).item() for p in (1, 2, math.inf)]
        [4.0, 5.0, 7.0]
    """
    if p == 2:
        return euclidean_norm(rows, dim=1)
    norms: Tensor = torch.linalg.vector_norm(rows, ord={1.0: math.inf, math.inf: 1.0}[float(p)], dim=1)
    return norms


def ball_product(ball: LpBall, weight: Interval) -> Interval:
    """Return bounds on ``W (x + scale ∘ u)`` for W in ``weight`` and ``‖u‖_p <= 1``.

    They are the interval of W x, plus or minus ``‖scale ∘ max(|W_L|, |W_U|)‖_{p*}`` for each row: an enclosure, exact
    for a point W. Around the midpoint of W alone the same radius would be unsound, since every W in the interval is
    multiplied by x.

    Args:
        ball: the inputs, with nominal (b, k) and scale (k,).
        weight: bounds on W, (o, k).

    Returns:
        Interval of shape (b, o).

    Reference:
        docs/theory.md, eq. (7.1).
    """
    center = product(Interval.point(ball.nominal), weight.mT)
    radius = dual_norm(weight.magnitude * ball.scale, ball.p)
    return center.widened(radius)
