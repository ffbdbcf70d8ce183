"""One pass over the samples of a step for some directions: what each direction meets, compiled for the CPU.

Functions that call each other, and the numbers they read, stay in one file: machine code that is kept on disk is made
anew only if the file of its outermost function changes.

Axis letters: ``q`` directions, ``i`` samples, ``j`` hidden units, ``k`` outputs, ``l`` inputs with a one at their end.
For every direction ``c = (C₁, C₂)`` and sample the loops find ``u = C₁x̂``, ``φ = Jc``, ``ψ = Λφ`` and the sums of
docs/theory.md, eq. (13.8) to (13.17); nothing of the size of samples times units times directions is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from agt_lightning.arithmetic.compiled import Array, Scalar, compiled
from agt_lightning.domains.adjoint.one_hidden.arrays import (
    DirectionArrays,
    FeatureArrays,
    Found,
    Index,
    LabelArrays,
    PairArrays,
    SampleArrays,
)

TILE = 128
"""Samples that one direction goes through before the next one does: their masks stay in the cache."""

BLOCK = 4
"""Rows that are added together; the inputs are filled up with zeros to a multiple of it."""

NO_LABELS, NUMBERS, CLASSES = 0, 1, 2
"""What labels the adversary changes."""


def accumulate(
    samples: SampleArrays,
    pairs: PairArrays,
    labels: LabelArrays,
    features: FeatureArrays,
    directions: DirectionArrays,
    radius: float,
    found: Found,
) -> None:
    """Add up everything that one step adds for some directions.

    Args:
        samples: of the step.
        pairs: units that may switch.
        labels: what the adversary can do to labels.
        features: what it can do to features.
        directions: the directions after the step.
        radius: R before the step.
        found: sums, added to.
    """
    tile = (TILE, samples.second.shape[0])
    scratch = (
        np.empty((TILE, samples.second.shape[1])),
        np.empty(tile),
        np.empty(tile),
        np.empty(TILE),
        np.empty((TILE, 5)),
    )
    for q in range(len(directions.first)):
        arguments: tuple[Any, ...] = (
            *samples, *pairs, *labels, *features, *(each[q] for each in directions), radius, *scratch,
            *(each[q] for each in found),
        )  # fmt: skip
        _through_tiles(*arguments)


@compiled
def _through_tiles(
    inputs: Array,
    active: Array,
    reachable: Array,
    values: Array,
    pull: Array,
    gradient: Array,
    curve: Array,
    rank: Array,
    numbers: Array,
    second: Array,
    second_norms: Array,
    start: Index,
    unit: Index,
    bins: Index,
    sign: Array,
    kind: int,
    lower: Array,
    upper: Array,
    index: Index,
    reach: Array,
    label_change: Array,
    flip_slope: float,
    moves: bool,
    slope: Array,
    unit_moves: Array,
    half_widths: Array,
    scale: Array,
    order: int,
    feature_numbers: Array,
    first: Array,
    last: Array,
    columns: Array,
    last_norm: Scalar,
    through: Array,
    moved: Array,
    moved_norm: Scalar,
    radius: float,
    u: Array,
    phi: Array,
    psi: Array,
    change: Array,
    switches: Array,
    poison: Array,
    steps: Array,
    ramps: Array,
    cross: Array,
    sums: Array,
    outer: Array,
    final: Array,
) -> None:
    """Go through all samples for one direction; the arguments are the fields of the tuples above.

    Tuples of arrays would be counted anew at each sample, which takes longer than the sums.
    """
    for top in range(0, len(inputs), TILE):
        rows = slice(top, min(top + TILE, len(inputs)))
        w, on, ends = numbers[rows], active[rows], start[top : rows.stop + 1]
        _products(inputs[rows], first, u)
        _outputs(on, values[rows], second, last, curve[rows], rank[rows], u, phi, psi)
        _reachable_squares(reachable[rows], columns, w, u, change, sums)
        _switches(
            ends, unit, bins, sign, pull[rows], gradient[rows], second, second_norms, last, w, u, psi, radius, change,
            steps, ramps, cross, sums,
        )  # fmt: skip
        _totals(w, phi, change, sums)
        _backward(inputs[rows], on, values[rows], gradient[rows], w, u, psi, outer, final)
        _labels(kind, lower, upper, index, reach, label_change, flip_slope, top, phi, change, w, poison)
        if moves:
            _feature_switches(
                ends, unit, bins, sign, pull[rows], second_norms, columns, moved, feature_numbers[rows], unit_moves,
                top, u, switches,
            )  # fmt: skip
            _features(
                switches, gradient[rows], on, last_norm, through, moved_norm, slope[rows], half_widths, scale, order,
                feature_numbers[rows], label_change[rows], w, phi, psi, change, radius, top, poison,
            )  # fmt: skip


@compiled
def _products(inputs: Array, first: Array, u: Array) -> None:
    """``u = C₁ x̂``."""
    for i in range(len(inputs)):
        row = u[i]
        row[:] = 0.0
        for n in range(0, inputs.shape[1], BLOCK):
            _add_four(inputs[i, n : n + BLOCK], first[n], first[n + 1], first[n + 2], first[n + 3], row)


@compiled
def _add_four(factors: Array, one: Array, two: Array, three: Array, four: Array, total: Array) -> None:
    """Add four rows at a time: fewer passes over the total."""
    a, b, c, d = factors[0], factors[1], factors[2], factors[3]
    for j in range(len(total)):
        total[j] += a * one[j] + b * two[j] + c * three[j] + d * four[j]


@compiled
def _add(factor: Scalar, row: Array, total: Array) -> None:
    for j in range(len(row)):
        total[j] += factor * row[j]


@compiled
def _dot(row: Array, other: Array) -> Scalar:
    total = 0.0
    for j in range(len(row)):
        total += row[j] * other[j]
    return total


@compiled
def _norm(values: Array) -> Scalar:
    root: Scalar = np.sqrt(_dot(values, values))
    return root


@compiled
def _outputs(
    active: Array,
    values: Array,
    second: Array,
    last: Array,
    curve: Array,
    rank: Array,
    u: Array,
    phi: Array,
    psi: Array,
) -> None:
    """``φ = Jc`` and ``ψ = Λφ``."""
    for i in range(len(active)):
        along = 0.0
        for k in range(len(second)):
            phi[i, k] = _masked_dot(active[i], second[k], u[i]) + _dot(last[k], values[i])
            along += rank[i, k] * phi[i, k]
        for k in range(len(second)):
            psi[i, k] = curve[i, k] * phi[i, k] - rank[i, k] * along


@compiled
def _masked_dot(active: Array, row: Array, u: Array) -> Scalar:
    total = 0.0
    for j in range(len(row)):
        total += active[j] * row[j] * u[j]
    return total


@compiled
def _reachable_squares(reachable: Array, columns: Array, numbers: Array, u: Array, change: Array, sums: Array) -> None:
    """``‖u‖² + ‖C₂‖²N²`` on units that may be active."""
    for i in range(len(reachable)):
        first = _masked_dot(reachable[i], u[i], u[i])
        change[i] = first + numbers[i, 1] ** 2 * _masked_dot(reachable[i], columns, columns)
        sums[1] += numbers[i, 0] * numbers[i, 4] * change[i]


@compiled
def _switches(
    start: Index,
    unit: Index,
    bins: Index,
    sign: Array,
    pull: Array,
    gradient: Array,
    second: Array,
    second_norms: Array,
    last: Array,
    numbers: Array,
    u: Array,
    psi: Array,
    radius: float,
    change: Array,
    steps: Array,
    ramps: Array,
    cross: Array,
    sums: Array,
) -> None:
    """Put pairs into their bins, and make ``change`` Φ of eq. (13.10): how far ``φ`` moves in the ball."""
    for i in range(len(pull)):
        weight, norm, switched = numbers[i, 0], numbers[i, 1], 0.0
        weighted, back = weight * numbers[i, 2], weight * norm * _norm(psi[i])
        for p in range(start[i], start[i + 1]):
            b, j = bins[p], unit[p]
            if b < 0:
                continue
            along, slip = u[i, j], 0.0
            switched += second_norms[j] * abs(along)
            jump = weight * pull[i, j] * along
            if sign[p] == 0:
                steps[0, j, b] += abs(jump)
                steps[1, j, b] += abs(jump)
            else:
                steps[0 if sign[p] * jump < 0 else 1, j, b] += abs(jump)
            for k in range(len(second)):
                slip += gradient[i, k] * last[k, j] + psi[i, k] * second[k, j]
            ramps[0 if slip > 0 else 1, j, b] += weight * norm * abs(slip)
            cross[0, j, b] += weighted * abs(along)
            cross[1, j, b] += back
        sums[2] += weight * numbers[i, 4] * switched * switched
        change[i] = radius * np.sqrt(change[i]) + switched


@compiled
def _totals(numbers: Array, phi: Array, change: Array, sums: Array) -> None:
    for i in range(len(numbers)):
        sums[0] += numbers[i, 0] * numbers[i, 3] * change[i]
        sums[3] += numbers[i, 0] * numbers[i, 5] * _norm(phi[i])


@compiled
def _backward(
    inputs: Array,
    active: Array,
    values: Array,
    gradient: Array,
    numbers: Array,
    u: Array,
    psi: Array,
    outer: Array,
    final: Array,
) -> None:
    """Add the samples' share of ``Hc``."""
    factors = np.empty(BLOCK)
    whole = len(inputs) - len(inputs) % BLOCK
    for k in range(len(final)):
        for i in range(0, whole, BLOCK):
            for n in range(inputs.shape[1]):
                for m in range(BLOCK):
                    factors[m] = numbers[i + m, 0] * psi[i + m, k] * inputs[i + m, n]
                _add_four(factors, active[i], active[i + 1], active[i + 2], active[i + 3], outer[k, n])
        for i in range(whole, len(inputs)):
            for n in range(inputs.shape[1]):
                _add(numbers[i, 0] * psi[i, k] * inputs[i, n], active[i], outer[k, n])
        for i in range(len(inputs)):
            _add(numbers[i, 0] * psi[i, k], values[i], final[k])
            _add_masked(numbers[i, 0] * gradient[i, k], active[i], u[i], final[k])


@compiled
def _add_masked(factor: Scalar, active: Array, row: Array, total: Array) -> None:
    for j in range(len(row)):
        total[j] += factor * active[j] * row[j]


@compiled
def _labels(
    kind: int,
    lower: Array,
    upper: Array,
    index: Index,
    reach: Array,
    largest: Array,
    slope: float,
    top: int,
    phi: Array,
    change: Array,
    numbers: Array,
    poison: Array,
) -> None:
    """What labels add: ``max over q of s q·φ``, and ``‖q‖ Φ``, eq. (13.15)."""
    for i in range(len(numbers)):
        row, moved = top + i, largest[top + i] * change[i]
        for side in range(2):
            sign, support = 1.0 - 2.0 * side, 0.0
            if kind == NUMBERS:
                for k in range(phi.shape[1]):
                    support += max(sign * phi[i, k] * lower[row, k], sign * phi[i, k] * upper[row, k])
                support = min(support, largest[row] * _norm(phi[i]))
            if kind == CLASSES:
                for k in range(phi.shape[1]):
                    if reach[row, k] > 0:
                        support = max(support, slope * sign * (phi[i, index[row]] - phi[i, k]))
            poison[side, row] = numbers[i, 0] * (support + moved)


@compiled
def _features(
    sums: Array,
    gradient: Array,
    active: Array,
    last_norm: Scalar,
    through: Array,
    moved_norm: Scalar,
    slope: Array,
    half_widths: Array,
    scale: Array,
    order: int,
    feature_numbers: Array,
    label_change: Array,
    numbers: Array,
    phi: Array,
    psi: Array,
    change: Array,
    radius: float,
    top: int,
    poison: Array,
) -> None:
    """What features add, together with labels, eq. (13.16) and (13.17)."""
    line = np.empty((through.shape[0], through.shape[1]))
    for i in range(len(active)):
        distance, factor, slack = feature_numbers[i, 0], feature_numbers[i, 1], feature_numbers[i, 2]
        after, cubic = feature_numbers[i, 3], feature_numbers[i, 4]
        widths = half_widths[(top + i) if len(half_widths) > 1 else 0]
        both = np.sqrt(sums[i, 0]) + factor * moved_norm
        rest = radius * np.sqrt(both * both + (last_norm * distance) ** 2) + sums[i, 1]
        _input_slope(active[i], through, line)
        effect = _row_norms(line, widths, scale, order) + rest + sums[i, 2]
        _combine(slope[i], line, psi[i], gradient[i])
        total = _support(line[0], widths, scale, order) + _norm(psi[i]) * slack
        total += _norm(phi[i]) * cubic + after * change[i] + numbers[i, 2] * rest
        total += (numbers[i, 3] + after + label_change[i]) * effect
        poison[0, top + i] += numbers[i, 0] * (total + sums[i, 3])
        poison[1, top + i] += numbers[i, 0] * (total + sums[i, 4])


@compiled
def _feature_switches(
    start: Index,
    unit: Index,
    bins: Index,
    sign: Array,
    pull: Array,
    second_norms: Array,
    columns: Array,
    moved: Array,
    feature_numbers: Array,
    unit_moves: Array,
    top: int,
    u: Array,
    sums: Array,
) -> None:
    """Sums over units that features may switch: ``Σ u²``, of E_s, ``Σ ‖W₂ⱼ‖|u_j|``, and jumps for both signs."""
    for i in range(len(pull)):
        factor, row = feature_numbers[i, 1], (top + i) if len(unit_moves) > 1 else 0
        squares = crossed = jumped = up = down = 0.0
        for p in range(start[i], start[i + 1]):
            j = unit[p]
            along, jump = u[i, j], pull[i, j] * u[i, j]
            squares += along * along
            crossed += second_norms[j] * factor * moved[j] + columns[j] * unit_moves[row, j]
            jumped += second_norms[j] * abs(along)
            if bins[p] >= 0:
                up += abs(jump)
                down += abs(jump)
            elif sign[p] * jump < 0:
                up += abs(jump)
            else:
                down += abs(jump)
        sums[i, 0], sums[i, 1], sums[i, 2], sums[i, 3], sums[i, 4] = squares, crossed, jumped, up, down


@compiled
def _input_slope(active: Array, through: Array, line: Array) -> None:
    """``b = ∂φ/∂x``, a row per output."""
    features = line.shape[1]
    for k in range(line.shape[0]):
        whole = features - features % BLOCK
        for d in range(0, whole, BLOCK):
            rows = through[k, d], through[k, d + 1], through[k, d + 2], through[k, d + 3]
            line[k, d], line[k, d + 1], line[k, d + 2], line[k, d + 3] = _four_dots(active, *rows)
        for d in range(whole, features):
            line[k, d] = _dot(active, through[k, d])


@compiled
def _four_dots(row: Array, one: Array, two: Array, three: Array, four: Array) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    a = b = c = d = 0.0
    for j in range(len(row)):
        a += row[j] * one[j]
        b += row[j] * two[j]
        c += row[j] * three[j]
        d += row[j] * four[j]
    return a, b, c, d


@compiled
def _row_norms(line: Array, widths: Array, scale: Array, order: int) -> Scalar:
    """Upper bound on ``‖b Δx‖``."""
    total: Scalar = 0.0
    for k in range(len(line)):
        total += _support(line[k], widths, scale, order) ** 2
    root: Scalar = np.sqrt(total)
    return root


@compiled
def _combine(slope: Array, line: Array, psi: Array, gradient: Array) -> None:
    """Put ``aᵀψ + bᵀg`` into the first row."""
    for d in range(line.shape[1]):
        total = 0.0
        for k in range(len(psi)):
            total += slope[k, d] * psi[k] + line[k, d] * gradient[k]
        line[0, d] = total


@compiled
def _support(row: Array, half_widths: Array, scale: Array, order: int) -> Scalar:
    """Largest ``|row · Δx|``."""
    box, squares, largest = 0.0, 0.0, 0.0
    for d in range(len(row)):
        box += abs(row[d]) * half_widths[d]
    if order == 0:
        return box
    for d in range(len(row)):
        scaled = abs(row[d]) * scale[d]
        squares += scaled * scaled
        largest = max(largest, scaled)
    return min(box, np.sqrt(squares) if order == 2 else largest)
