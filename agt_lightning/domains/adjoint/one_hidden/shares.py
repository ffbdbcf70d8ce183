"""Suprema over how the units of a layer share the movement of their weights, in bins of its size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agt_lightning.arithmetic.compiled import Array as Values

BINS = 32
"""Bins of the distance at which a unit switches; more are tighter."""

_PRICES = 10
"""Lagrange multipliers that are tried, each half of the one before."""


def bin_edges(radius: float) -> Values:
    """Return the edges of the bins, from 0 to the radius, (BINS + 1,): narrower near zero, where most weight is.

    Example:
        >>> edges = bin_edges(2.0)
        >>> len(edges), float(edges[0]), float(edges[-1])
        (33, 0.0, 2.0)
    """
    edges: Values = radius * (np.arange(BINS + 1) / BINS) ** 1.5
    edges[-1] = radius
    return edges


def bins_of(distance: Values, edges: Values) -> NDArray[np.int64]:
    """Return the bin of each distance, whose left edge is no larger than it."""
    return np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, BINS - 1).astype(np.int64)


def switched(steps: Values, ramps: Values, edges: Values) -> Values:
    """Return upper bounds on ``Σ_{t <= r} step + Σ_{t <= r} ramp (r - t)`` for r in each bin, (..., bins).

    Args:
        steps: sums of steps by bin, (..., bins), nonnegative.
        ramps: sums of slopes by bin, (..., bins), nonnegative.
        edges: of the bins, (bins + 1,).
    """
    slopes = np.cumsum(ramps, axis=-1)
    risen = np.cumsum(slopes * np.diff(edges), axis=-1)
    result: Values = np.cumsum(steps, axis=-1) + risen
    return result


def largest_shared(values: Values, edges: Values) -> Values:
    """Return upper bounds on ``Σ_j φ_j(r_j)`` over all r with ``Σ_j r_j² <= R²``, (...,).

    By weak duality it is at most ``ρ R² + Σ_j max_k (φ_j - ρ r²)`` for every ρ >= 0, with the value at the right of a
    bin and the cost at its left.

    Args:
        values: largest φ_j in each bin, (..., units, bins), rising with the bin.
        edges: of the bins; the last one is R.

    Reference:
        docs/theory.md, eq. (10.13) and (13.9).
    """
    everything: Values = values[..., -1].sum(axis=-1)
    budget, costs, best = float(edges[-1]) ** 2, edges[:-1] ** 2, everything
    if budget == 0:
        return best
    for power in range(_PRICES):
        price = everything / budget * 0.5**power
        gains = (values - price[..., None, None] * costs).max(axis=-1).clip(min=0)
        best = np.minimum(best, price * budget + gains.sum(axis=-1))
    return best
