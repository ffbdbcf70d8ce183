"""What the loops of `kernel` read and add to, as arrays.

Axis letters: ``q`` directions, ``t`` tiles of samples, ``i`` samples of one tile, ``j`` hidden units, ``k`` outputs,
``l`` inputs with a one at their end, ``d`` inputs without it. The last tile is filled up with zeros: samples of no
weight.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agt_lightning.arithmetic.compiled import Array

Index = NDArray[np.int64]

_NUMBERS = 32768
"""Of the products of one direction and a tile of samples: those of some directions together stay in a cache."""

_FEWEST, _MOST = 16, 256
"""Samples of a tile."""


def tile_size(units: int, outputs: int, inputs: int) -> int:
    """Return how many samples make a tile, a power of two.

    Example:
        >>> tile_size(units=64, outputs=1, inputs=12), tile_size(units=64, outputs=10, inputs=513)
        (256, 16)
    """
    products = units + 2 * outputs * (inputs + 1)
    size = 1 << (max(_NUMBERS // products, 1).bit_length() - 1)
    return min(max(size, _FEWEST), _MOST)


class SampleArrays(NamedTuple):
    """Samples of a step at the nominal parameters.

    Args:
        inputs: x̂, (t, l, i).
        active: nominal mask, 0 or 1, (t, j, i).
        reachable: units that may be active in the ball, 0 or 1, (t, j, i).
        values: ẑ, (t, j + 1, i).
        gradient: g, (t, k, i).
        curve: diagonal part of Λ, (t, k, i).
        rank: ``Λ = diag(curve) - rank rankᵀ``, (t, k, i).
        numbers: by `COLUMNS`, (t, len(COLUMNS), i).
        second: W₂, (k, j).
        second_norms: ``‖W₂ e_j‖``, (j,).
    """

    inputs: Array
    active: Array
    reachable: Array
    values: Array
    gradient: Array
    curve: Array
    rank: Array
    numbers: Array
    second: Array
    second_norms: Array


COLUMNS = ("weight", "norm", "size", "change", "curvature", "cubic")
"""w, N, ‖g‖, Γ, λ and ``½ sup|ℓ'''| D²``, each from above."""


class PairArrays(NamedTuple):
    """Pairs of a sample and a unit whose mask may differ from the nominal one, tile by tile.

    Args:
        start: first pair of each tile, and their number, (t + 1,).
        sample: in its tile, (m,).
        unit: (m,).
        bin: of its distance; -1 for units that the ball alone does not switch, (m,).
        sign: of the preactivation, 0 if rounding leaves it open, (m,).
        pull: ``e_ij = g_i · W₂ e_j``, (m,).
        move: how far features move the preactivation; no entries if features stay, (m,).
    """

    start: Index
    sample: Index
    unit: Index
    bin: Index
    sign: Array
    pull: Array
    move: Array


class LabelArrays(NamedTuple):
    """What the adversary can add to the gradient of the loss by labels.

    Args:
        kind: `kernel.NO_LABELS`, `kernel.NUMBERS` or `kernel.CLASSES`.
        lower: of q for numbers, (t, k, i).
        upper: the same.
        own: class of each sample, (t, i).
        reach: classes that a flip can write, 0 or 1, (t, k, i).
        largest: upper bound on ‖q‖, (t, i).
        slope: factor of flips.
    """

    kind: int
    lower: Array
    upper: Array
    own: Index
    reach: Array
    largest: Array
    slope: float


class FeatureArrays(NamedTuple):
    """What the adversary can do to features; arrays with no entries if they stay.

    Args:
        moves: whether features change.
        slope: ``a = ∂f/∂x``, (t, k, d, i).
        half_widths: of the box, (t, d, i), or one tile for all.
        scale: of the ball, (d,).
        order: norm of the ball, 1 or 2; 0 without one.
        numbers: by `FEATURE_COLUMNS`, (t, len(FEATURE_COLUMNS), i).
    """

    moves: bool
    slope: Array
    half_widths: Array
    scale: Array
    order: int
    numbers: Array


FEATURE_COLUMNS = ("moved", "factor", "slack", "change", "cubic")
"""ρ₂; factor of k_j; E_f; Γ'; and the cubic term ``sup|ℓ'''| (D + F/2) F``."""


class DirectionArrays(NamedTuple):
    """Some directions, and what is the same for all samples.

    Args:
        first: C₁, (q, j, l).
        second: C₂, (q, k, j + 1).
        columns: ``‖C₂ e_j‖``, (q, j).
        second_norm: ‖C₂‖ without its last column, (q,).
        through: ``V_kj = W₂_kj C₁_j + C₂_kj W₁_j`` without the one, (q, k, d, j); no entries if features stay.
        moved: how far features move ``u_j``, up to a factor per sample, (q, j).
        moved_norm: an upper bound on the norm of these, (q,).
    """

    first: Array
    second: Array
    columns: Array
    second_norm: Array
    through: Array
    moved: Array
    moved_norm: Array


class Products(NamedTuple):
    """Matrix products for one tile and all directions.

    Args:
        u: ``C₁ x̂``, (q, j, i).
        phi: ``C₂ ẑ``, then ``φ = Jc``, (q, k, i).
        psi: ``w ψ``, (q, k, i).
        columns: ``‖C₂‖²`` on units that may be active, (q, i).
        line: ``∂φ/∂x``, (q, k, d, i); no entries if features stay.
        bent: ``w ψ x̂``, (q, k, l, i).
    """

    u: Array
    phi: Array
    psi: Array
    columns: Array
    line: Array
    bent: Array


class Found(NamedTuple):
    """What the loops add up, for each direction and two signs s = +1, -1.

    Args:
        poison: upper bound on what each sample adds under poison, (q, t, 2, i).
        steps: of the jumps, by unit and bin, (q, 2, j, bins).
        ramps: of the slips, by unit and bin, times N, (q, 2, j, bins).
        cross: the same two for what ``δ₂`` adds to them, (q, 2, j, bins).
        sums: (q, 4): ``Σ w Γ Φ``, ``Σ w λ (‖u‖² + ‖C₂‖²N²)``, ``Σ w λ (Σ_near ‖W₂ⱼ‖|u_j|)²``, ``Σ w ‖φ‖ cubic``.
        outer: ``Σ w ψ_k m_j x̂_l``, (q, k, l, j).
        last: ``Σ w ψ_k ẑ_j``, (q, k, j + 1).
    """

    poison: Array
    steps: Array
    ramps: Array
    cross: Array
    sums: Array
    outer: Array
    last: Array


def nothing_found(samples: SampleArrays, directions: int, bins: int) -> Found:
    """Return sums of nothing."""
    tiles, inputs, size = samples.inputs.shape
    outputs, units = samples.second.shape
    shapes = [
        (directions, tiles, 2, size),
        (directions, 2, units, bins),
        (directions, 2, units, bins),
        (directions, 2, units, bins),
        (directions, 4),
        (directions, outputs, inputs, units),
        (directions, outputs, units + 1),
    ]
    return Found(*(np.zeros(shape) for shape in shapes))
