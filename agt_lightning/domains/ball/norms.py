"""Spectral norms, proved from above."""

import math

import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.arithmetic.floating_point import unless
from agt_lightning.rounding import accumulated_roundoff

_LARGEST_GRAM = 4096
"""Beyond this size the trace stands for the largest eigenvalue."""

_SQUARINGS = 5
"""Of a small matrix: its norm is then right up to a 64th root of its size, 4 % for twelve equal eigenvalues."""


def with_one(norms: Tensor, one: bool) -> Tensor:
    """``‖(x, 1)‖`` from ``‖x‖``, if there is a one."""
    return (norms.square() + 1).sqrt() if one else norms


def append_one(rows: Tensor, one: bool) -> Tensor:
    """``(x, 1)`` from x, if there is a one; (b, d) or (b, d + 1)."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if one else rows


def norms_on(entries: Tensor, rows: Tensor) -> Tensor:
    """``‖row on these entries‖``, also where squares underflow.

    Args:
        entries: which entries count, as 0 or 1, (b, k).
        rows: (o, k).

    Returns:
        (b, o)
    """
    squares = (entries @ rows.square().T).sqrt()
    norms = euclidean_norm(rows, dim=1)
    return squares + unless(norms == 0, lost_in_squares(rows.shape[1], rows), norms)


def lost_in_squares(count: int, like: Tensor) -> float:
    """Return what underflow can take from the root of a sum of so many squares.

    Example:
        >>> lost_in_squares(4, torch.ones(1)) ** 2 < 1e-37
        True
    """
    return math.sqrt(count * torch.finfo(like.dtype).tiny)


def spectral_norm(matrix: Tensor) -> float:
    """Upper bound on the largest singular value of a matrix (o, k)."""
    return math.sqrt(gram_norm(matrix, matrix.new_ones(len(matrix)))) * _upward(8, matrix)


def spectral_norms(matrices: Tensor) -> Tensor:
    """Upper bound on the largest singular value of every matrix, (m, o, k) to (m,)."""
    outputs, inputs = matrices.shape[1:]
    norms: Tensor = euclidean_norm(matrices.flatten(1), dim=1) * _upward(outputs * inputs + 2, matrices)
    if outputs == 1 or not bool(norms.isfinite().all()):
        return norms
    largest = _largest_eigenvalues(matrices @ matrices.mT)
    error = accumulated_roundoff(inputs + 4, matrices.dtype) * norms.square()  # of the products
    lost = unless(norms == 0, 4 * outputs * inputs * torch.finfo(matrices.dtype).tiny, norms)  # by underflow
    return torch.minimum((largest + error + lost).sqrt() * _upward(4, matrices), norms)


def norms_by_squaring(matrices: Tensor) -> Tensor:
    """Upper bound on the spectral norm of many small matrices, by ``‖N‖ = ‖NᵀN‖^½`` and at last ``‖N‖ <= ‖N‖_F``.

    With N scaled to ``‖N‖_F = 1`` a product of floating point is ``NᵀN + E``, ``‖E‖ <= γ``: no eigenvalue is computed.

    Args:
        matrices: (m, k, k).

    Returns:
        (m,); NaN where an entry is not finite.

    Example:
        >>> norms_by_squaring(torch.tensor([[[3.0, 0.0], [0.0, -4.0]]], dtype=torch.float64)).round(decimals=3)
        tensor([4.], dtype=torch.float64)
    """
    limits, size = torch.finfo(matrices.dtype), matrices.shape[1]
    error = accumulated_roundoff(8 * size + 64, matrices.dtype)  # of products and of scaling
    scales = []
    for _ in range(_SQUARINGS):
        scale = _frobenius(matrices)
        scaled = matrices / scale.clamp(min=limits.tiny)[:, None, None]
        matrices = scaled.mT @ scaled
        scales.append(scale)
    bound = _frobenius(matrices)
    for scale in reversed(scales):
        bound = scale * (bound + error).sqrt()
    return bound * _upward(8 * _SQUARINGS, bound)


def _frobenius(matrices: Tensor) -> Tensor:
    """Upper bound on the Frobenius norm of each matrix, (m, k, k) to (m,)."""
    norms: Tensor = euclidean_norm(matrices.flatten(1), dim=1) * _upward(matrices[0].numel() + 2, matrices)
    return norms


def gram_norm(rows: Tensor, weights: Tensor, one: bool = False) -> float:
    """Upper bound on the largest eigenvalue of ``Σ_i w_i x_i x_iᵀ``, or of the same with ``(x_i, 1)``.

    Args:
        rows: x_i, (b, d).
        weights: w_i >= 0, (b,).
        one: whether each row has a one at its end.

    Returns:
        The bound; infinite if a number is not finite.

    Example:
        >>> round(gram_norm(torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 4.0]).double()), 6)
        4.0
    """
    root = weights.sqrt()
    scaled = rows * root[:, None]
    small, large = sorted((len(rows), rows.shape[1] + one))
    if small > _LARGEST_GRAM:
        total = float(scaled.square().sum() + one * weights.sum())
        return total * _upward(len(rows) * (rows.shape[1] + 1) + 8, rows) + _underflow(rows, total)
    gram = _inner_gram(scaled, root, one) if len(rows) > small else _outer_gram(scaled, root, one)
    trace = float(gram.trace()) * _upward(large + small + 8, rows)
    if not math.isfinite(trace):
        return math.inf
    error = accumulated_roundoff(large + 8, rows.dtype) * trace  # of the products
    return min(trace, (float(_largest_eigenvalues(gram[None])) + error) * _upward(4, rows)) + _underflow(rows, trace)


def _underflow(rows: Tensor, trace: float) -> float:
    """Return what underflow can take from the trace of a Gram matrix of these rows, if roundings do not cover it."""
    limits = torch.finfo(rows.dtype)
    lost = 4 * len(rows) * (rows.shape[1] + 1) * limits.tiny
    return lost if trace * limits.eps < lost and bool(rows.any()) else 0.0


def _largest_eigenvalues(matrices: Tensor) -> Tensor:
    """Upper bounds on the largest eigenvalues of symmetric matrices with no negative ones, (m, k, k) to (m,).

    A Cholesky factorization proves what `eigvalsh` has found: where it runs to completion on ``(μ - c) 1 - G`` in
    floating point, with ``c = γ_{k+1} k μ / (1 - γ_{k+1})``, all eigenvalues of G are below μ. The trace stands for
    those that are not proved.

    Args:
        matrices: G; finite, the lower triangles are read.

    Reference:
        Rump, Verification of positive definiteness, BIT 46 (2006); Higham 2002, theorem 10.3.
    """
    size = matrices.shape[1]
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    trace = diagonal.sum(dim=1) * _upward(size, matrices)
    try:
        found = torch.linalg.eigvalsh(matrices)[:, -1].clamp(min=0)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return trace
    shift = 2 * size * accumulated_roundoff(size + 4, matrices.dtype) * found  # twice c: for the rounding of μ - c - g
    bound = found + 4 * shift
    candidates = (-matrices).diagonal_scatter((bound - shift)[:, None] - diagonal, dim1=1, dim2=2)
    proved = torch.linalg.cholesky_ex(candidates).info == 0
    return torch.where(proved, torch.minimum(bound, trace), trace)


def _upward(operations: int, like: Tensor) -> float:
    """Return a factor above the rounding of so many operations on numbers that are not negative."""
    return 1 + accumulated_roundoff(operations, like.dtype)


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
