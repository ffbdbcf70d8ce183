"""Spectral norms, rounded up."""

import math

import torch
from torch import Tensor

from agt_lightning.rounding import accumulated_roundoff

_LARGEST_GRAM = 4096
"""Beyond this size the trace stands for the largest eigenvalue."""


def with_one(norms: Tensor, one: bool) -> Tensor:
    """``‖(x, 1)‖`` from ``‖x‖``, if there is a one."""
    return (norms.square() + 1).sqrt() if one else norms


def append_one(rows: Tensor, one: bool) -> Tensor:
    """``(x, 1)`` from x, if there is a one; (b, d) or (b, d + 1)."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if one else rows


def spectral_norm(matrix: Tensor) -> float:
    """Largest singular value of a matrix (o, k)."""
    return math.sqrt(gram_norm(matrix, matrix.new_ones(len(matrix))))


def spectral_norms(matrices: Tensor) -> Tensor:
    """Largest singular value of every matrix, (m, o, k) to (m,)."""
    norms: Tensor = matrices.flatten(1).norm(dim=1)
    if matrices.shape[1] == 1:
        return norms
    grams = matrices @ matrices.mT
    largest = torch.linalg.eigvalsh(grams)[:, -1].clamp(min=0).sqrt()
    slack = accumulated_roundoff(matrices.shape[2] * matrices.shape[1] ** 2, matrices.dtype)
    # The square root turns a relative rounding of the squared Frobenius norm into its root where the norm is small.
    return torch.minimum(largest + math.sqrt(slack) * norms, norms)


def gram_norm(rows: Tensor, weights: Tensor, one: bool = False) -> float:
    """Largest eigenvalue of ``Σ_i w_i x_i x_iᵀ``, or of the same with ``(x_i, 1)``.

    Args:
        rows: x_i, (b, d).
        weights: w_i >= 0, (b,).
        one: whether each row has a one at its end.

    Example:
        >>> round(gram_norm(torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 4.0]).double()), 6)
        4.0
    """
    root = weights.sqrt()
    scaled = rows * root[:, None]
    small, large = sorted((len(rows), rows.shape[1] + one))
    if small > _LARGEST_GRAM:
        return float(scaled.square().sum() + one * weights.sum())
    gram = _inner_gram(scaled, root, one) if len(rows) > small else _outer_gram(scaled, root, one)
    trace = float(gram.trace())
    slack = accumulated_roundoff(large + small**2, rows.dtype) * trace
    return min(trace, float(torch.linalg.eigvalsh(gram)[-1]) + slack)


def _inner_gram(scaled: Tensor, root: Tensor, one: bool) -> Tensor:
    """``Σ_i x_i x_iᵀ``, with the border of the ones."""
    gram = scaled.T @ scaled
    if not one:
        return gram
    border = root @ scaled
    return torch.cat([torch.cat([gram, border[None]]), torch.cat([border, root.square().sum()[None]])[:, None]], dim=1)


def _outer_gram(scaled: Tensor, root: Tensor, one: bool) -> Tensor:
    """``x_i · x_k``, the same but for eigenvalues of zero."""
    gram = scaled @ scaled.T
    return gram + torch.outer(root, root) if one else gram
