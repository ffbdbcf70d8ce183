"""What one step can add to the distance along each direction, and the direction before the step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agt_lightning.arithmetic import dual_norm, euclidean_norm
from agt_lightning.arithmetic.compiled import Array as Values
from agt_lightning.domains.adjoint.directions import Directions
from agt_lightning.domains.adjoint.one_hidden.arrays import DirectionArrays, Found, nothing_found
from agt_lightning.domains.adjoint.one_hidden.geometry import StepGeometry
from agt_lightning.domains.adjoint.one_hidden.kernel import accumulate
from agt_lightning.domains.adjoint.one_hidden.shares import BINS, largest_shared, switched
from agt_lightning.domains.adjoint.step import StepBound
from agt_lightning.domains.ball.layers import REAL


def step_back(step: StepGeometry, directions: Directions) -> tuple[StepBound, Directions]:
    """Bound what a step adds along directions, and apply H to them.

    Args:
        step: the step.
        directions: c after the step.

    Returns:
        The bounds, and ``Hc``.

    Reference:
        docs/theory.md, eq. (13.4) and (13.8) to (13.17).
    """
    arrays = _direction_arrays(step, directions)
    found = nothing_found(step.sample_arrays, len(directions), BINS)
    accumulate(
        step.sample_arrays,
        step.pair_arrays,
        step.label_arrays,
        step.feature_arrays,
        arrays,
        step.radius,
        found,
    )
    bound = StepBound(_poison(step, found), _switches(step, found), _quadratic(step, found)[:, None])
    return bound, _curved(step, directions, found)


def _direction_arrays(step: StepGeometry, directions: Directions) -> DirectionArrays:
    first, second = step.ball.layers
    inputs = first.weight.shape[1]
    rows, columns = directions.first[:, :, :inputs], directions.second[:, :, :-1]
    column_norms = step.upward * euclidean_norm(columns, dim=1)
    through, moved = rows.new_zeros(len(rows), len(second.weight), 0, len(first.weight)), torch.zeros_like(column_norms)
    if step.features is not None:
        through = torch.einsum("kj,qjd->qkdj", second.weight, rows) + torch.einsum(
            "qkj,jd->qkdj", columns, first.weight
        )
        moved = step.upward * _moves(step, rows)
    return DirectionArrays(
        np.ascontiguousarray(directions.first.numpy()),
        np.ascontiguousarray(directions.second.numpy()),
        np.ascontiguousarray(column_norms.numpy()),
        (step.upward * euclidean_norm(column_norms, dim=1)).numpy(),
        np.ascontiguousarray(through.numpy()),
        np.ascontiguousarray(moved.numpy()),
        (step.upward * euclidean_norm(moved, dim=1)).numpy(),
    )


def _moves(step: StepGeometry, rows: Tensor) -> Tensor:
    """How far features move ``u_j``, up to the factor of each sample, (Q, h)."""
    features = step.features
    assert features is not None
    if len(features.half_widths) > 1:
        norms: Tensor = euclidean_norm(rows, dim=2)
        return norms
    box = rows.abs() @ features.half_widths[0]
    if features.scale is None:
        return box
    ball = dual_norm((rows * features.scale).flatten(0, 1), features.p).reshape(box.shape)
    return torch.minimum(box, ball)


def _poison(step: StepGeometry, found: Found) -> Values:
    """What the n worst samples add, (Q, 2)."""
    by_sample = np.swapaxes(found.poison, 1, 2).reshape(len(found.poison), 2, -1)
    return step.of_the_worst(by_sample[:, :, : len(step.weights)])


def _switches(step: StepGeometry, found: Found) -> Values:
    """Jumps and slips at first order, eq. (13.9)."""
    return largest_shared(switched(found.steps, found.ramps, step.edges), step.edges)


def _quadratic(step: StepGeometry, found: Found) -> Values:
    """The rest, (Q,)."""
    radius = step.radius
    cross = switched(found.cross[:, 0], found.cross[:, 1], step.edges)
    everything = np.square(cross[..., -1]).sum(axis=-1)
    # The root magnifies the rounding of a small supremum among large values.
    rounded = largest_shared(np.square(cross), step.edges) + REAL.own_relative(len(step.weights) + 64) * everything
    outer = np.sqrt(np.square(found.outer).sum(axis=(1, 2))).max(axis=1)
    sums = found.sums
    spread = radius * np.sqrt(sums[:, 1]) + np.sqrt(sums[:, 2])
    bilinear = np.minimum(sums[:, 0], radius * np.sqrt(step.curvature_norm) * spread)
    result: Values = radius * np.sqrt(rounded) + radius**2 / 2 * outer + bilinear + sums[:, 3]
    return result


def _curved(step: StepGeometry, directions: Directions, found: Found) -> Directions:
    """``Hc``."""
    second = step.ball.layers[1]
    rows = torch.einsum("kj,qklj->qjl", second.weight, torch.from_numpy(found.outer))
    rows += torch.einsum("qkj,kjl->qjl", directions.second[:, :, :-1], step.coupling)
    coupled = torch.einsum("qjl,kjl->qkj", directions.first, step.coupling)
    return Directions((rows, torch.from_numpy(found.last) + torch.nn.functional.pad(coupled, (0, 1))))
