"""What the loops of `kernel` read and add to, as arrays.

Axis letters: ``q`` directions, ``i`` samples, ``j`` hidden units, ``k`` outputs, ``l`` inputs with a one at their end.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agt_lightning.arithmetic.compiled import Array

Index = NDArray[np.int64]


class SampleArrays(NamedTuple):
    """Samples of a step at the nominal parameters.

    Args:
        inputs: x̂, filled up to a multiple of `kernel.BLOCK`, (b, l).
        active: nominal mask, 0 or 1, (b, j).
        reachable: units that may be active in the ball, 0 or 1, (b, j).
        values: ẑ, (b, j + 1).
        pull: ``e_ij = g_i · W₂ e_j``, (b, j).
        gradient: g, (b, k).
        curve: diagonal part of Λ, (b, k).
        rank: ``Λ = diag(curve) - rank rankᵀ``, (b, k).
        numbers: per sample, by `COLUMNS`, (b, len(COLUMNS)).
        second: W₂, (k, j).
        second_norms: ``‖W₂ e_j‖``, (j,).
    """

    inputs: Array
    active: Array
    reachable: Array
    values: Array
    pull: Array
    gradient: Array
    curve: Array
    rank: Array
    numbers: Array
    second: Array
    second_norms: Array


COLUMNS = ("weight", "norm", "size", "change", "curvature", "cubic")
"""w, N, ‖g‖, Γ, λ and ``½ sup|ℓ'''| D²``, each from above."""


class PairArrays(NamedTuple):
    """Pairs of a sample and a unit whose mask may differ from the nominal one.

    Args:
        start: first pair of each sample, (b + 1,).
        unit: (m,).
        bin: of its distance; -1 for units that the ball alone does not switch, (m,).
        sign: of the preactivation, 0 if rounding leaves it open, (m,).
    """

    start: Index
    unit: Index
    bin: Index
    sign: Array


class LabelArrays(NamedTuple):
    """What the adversary can add to the gradient of the loss by labels.

    Args:
        kind: `kernel.NO_LABELS`, `kernel.NUMBERS` or `kernel.CLASSES`.
        lower: of q for numbers, (b, k).
        upper: the same.
        own: class of each sample, (b,).
        reach: classes that a flip can write, 0 or 1, (b, k).
        largest: upper bound on ‖q‖, (b,).
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
        slope: ``a = ∂f/∂x``, (b, k, d).
        units: e_ij, how far features move preactivations, (b, j) or (1, j).
        half_widths: of the box, (b, d) or (1, d).
        scale: of the ball, (d,).
        order: norm of the ball, 1 or 2; 0 without one.
        numbers: per sample, by `FEATURE_COLUMNS`.
    """

    moves: bool
    slope: Array
    units: Array
    half_widths: Array
    scale: Array
    order: int
    numbers: Array


FEATURE_COLUMNS = ("moved", "factor", "slack", "change", "cubic")
"""ρ₂; factor of k_j; E_f; Γ'; and the cubic term ``sup|ℓ'''| (D + F/2) F``."""


class DirectionArrays(NamedTuple):
    """Some directions, and what is the same for all samples.

    Args:
        first: C₁ transposed, (q, l, j).
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


class Found(NamedTuple):
    """What the loops add up, for each direction and two signs s = +1, -1.

    Args:
        poison: upper bound on what each sample adds under poison, (q, 2, b).
        steps: of the jumps, by unit and bin, (q, 2, j, bins).
        ramps: of the slips, by unit and bin, times N, (q, 2, j, bins).
        cross: the same two for what ``δ₂`` adds to them, (q, 2, j, bins).
        sums: (q, 4): ``Σ w Γ Φ``, ``Σ w λ (‖u‖² + ‖C₂‖²N²)``, ``Σ w λ (Σ_near ‖W₂ⱼ‖|u_j|)²``, ``Σ w ‖φ‖ cubic``.
        outer: ``Σ w ψ_k m_j x̂_l``, (q, k, l, j).
        last: ``Σ w (ψ_k ẑ_j + g_k m_j u_j)``, (q, k, j + 1).
    """

    poison: Array
    steps: Array
    ramps: Array
    cross: Array
    sums: Array
    outer: Array
    last: Array


def nothing_found(directions: int, samples: int, units: int, outputs: int, inputs: int, bins: int) -> Found:
    """Return sums of nothing."""
    shapes = [
        (directions, 2, samples),
        (directions, 2, units, bins),
        (directions, 2, units, bins),
        (directions, 2, units, bins),
        (directions, 4),
        (directions, outputs, inputs, units),
        (directions, outputs, units + 1),
    ]
    return Found(*(np.zeros(shape) for shape in shapes))
