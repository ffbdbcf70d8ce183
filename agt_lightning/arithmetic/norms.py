"""Affine images of norm balls."""

import math

import torch
from torch import Tensor

from agt_lightning.arithmetic.products import product
from agt_lightning.interval import Interval, LpBall


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
    order = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[float(p)]
    norms: Tensor = torch.linalg.vector_norm(rows, ord=order, dim=1)
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
