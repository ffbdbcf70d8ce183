"""One pass over the samples of a step for some directions: what each direction meets, on the CPU.

Samples pass in tiles, and all directions through one tile before the next: what belongs to the samples is read once,
and the products of its matrices with all directions stay in the cache. Sums over units or samples are products of
matrices, and the rest are loops whose fastest axis is that of the samples.

Functions that call each other, and the numbers they read, stay in one file: machine code that is kept on disk is made
anew only if the file of its outermost function changes.

Axis letters: ``q`` directions, ``t`` tiles, ``i`` samples of one tile, ``j`` hidden units, ``k`` outputs, ``l`` inputs
with a one at their end, ``d`` inputs without it. For every direction ``c = (C₁, C₂)`` and sample there are
``u = C₁x̂``, ``φ = Jc``, ``ψ = Λφ`` and the sums of docs/theory.md, eq. (13.8) to (13.17).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agt_lightning.arithmetic.compiled import Array, Scalar, compiled
from agt_lightning.domains.adjoint.one_hidden.arrays import (
    DirectionArrays,
    FeatureArrays,
    Found,
    Index,
    LabelArrays,
    PairArrays,
    Products,
    SampleArrays,
)

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
    products = _room(samples, directions)
    for tile in range(len(samples.inputs)):
        _multiply(tile, samples, directions, products)
        _through_directions(tile, samples, pairs, labels, features, directions, radius, products, found)
        _add_products(tile, samples, products, found)


def _room(samples: SampleArrays, directions: DirectionArrays) -> Products:
    """Return arrays that each tile overwrites."""
    _, inputs, size = samples.inputs.shape
    count, outputs, features, units = directions.through.shape
    return Products(
        u=np.empty((count, units, size)),
        phi=np.empty((count, outputs, size)),
        psi=np.empty((count, outputs, size)),
        columns=np.empty((count, size)),
        line=np.empty((count, outputs, features, size)),
        bent=np.empty((count, outputs, inputs, size)),
    )


def _multiply(tile: int, samples: SampleArrays, directions: DirectionArrays, products: Products) -> None:
    """Write products of directions and samples."""
    factors = (
        (directions.first, samples.inputs, products.u),
        (directions.second, samples.values, products.phi),
        (np.square(directions.columns), samples.reachable, products.columns),
        (directions.through, samples.active, products.line),
    )
    for left, right, result in factors:
        torch.mm(_matrix(left), torch.from_numpy(right[tile]), out=_matrix(result))


def _add_products(tile: int, samples: SampleArrays, products: Products, found: Found) -> None:
    """Add the samples' share of ``Hc``."""
    factors = (products.bent, samples.active, found.outer), (products.psi, samples.values, found.last)
    for left, right, total in factors:
        _matrix(total).addmm_(_matrix(left), torch.from_numpy(right[tile]).T)


def _matrix(values: Array) -> Tensor:
    """Return a view of an array with all axes but the last as one."""
    return torch.from_numpy(values.reshape(-1, values.shape[-1]))


@compiled
def _through_directions(
    tile: int,
    samples: SampleArrays,
    pairs: PairArrays,
    labels: LabelArrays,
    features: FeatureArrays,
    directions: DirectionArrays,
    radius: float,
    products: Products,
    found: Found,
) -> None:
    """Add up what one tile of samples adds for each direction, and write `Products.psi` and `Products.bent`."""
    numbers, gradient = samples.numbers[tile], samples.gradient[tile]
    weights, largest = numbers[0], labels.largest[tile]
    sizes, steep, change = np.empty_like(weights), np.empty_like(weights), np.empty_like(weights)
    for q in range(len(products.u)):
        u, phi, psi, poison, sums = (
            products.u[q],
            products.phi[q],
            products.psi[q],
            found.poison[q, tile],
            found.sums[q],
        )
        _outputs(samples.active[tile], samples.second, samples.curve[tile], samples.rank[tile], u, phi, psi)
        _norms(phi, sizes)
        _norms(psi, steep)
        _reachable_squares(samples.reachable[tile], products.columns[q], numbers, u, change, sums)
        _switches(
            pairs.start[tile], pairs.start[tile + 1], pairs.sample, pairs.unit, pairs.bin, pairs.sign, pairs.pull,
            gradient, samples.second, samples.second_norms, directions.second[q], numbers, u, psi, steep, radius,
            change, found.steps[q], found.ramps[q], found.cross[q], sums,
        )  # fmt: skip
        _totals(numbers, sizes, change, sums)
        if labels.kind == NUMBERS:
            _number_labels(labels.lower[tile], labels.upper[tile], largest, phi, sizes, poison)
        elif labels.kind == CLASSES:
            _class_labels(labels.own[tile], labels.reach[tile], labels.slope, phi, poison)
        _add_moved(largest, change, poison)
        if features.moves:
            sides = np.zeros((5, len(weights)))
            _feature_switches(
                pairs.start[tile], pairs.start[tile + 1], pairs.sample, pairs.unit, pairs.bin, pairs.sign, pairs.pull,
                pairs.move, samples.second_norms, directions.columns[q], directions.moved[q],
                features.numbers[tile, 1], u, sides,
            )  # fmt: skip
            _features(
                sides, gradient, directions.second_norm[q], directions.moved_norm[q], products.line[q],
                features.slope[tile], features.half_widths[tile if len(features.half_widths) > 1 else 0],
                features.scale, features.order, features.numbers[tile], largest, numbers, psi, sizes, steep, change,
                radius, poison,
            )  # fmt: skip
        for side in range(2):
            _multiply_by(weights, poison[side])
        _bend(samples.inputs[tile], weights, psi, products.bent[q])


@compiled
def _outputs(active: Array, second: Array, curve: Array, rank: Array, u: Array, phi: Array, psi: Array) -> None:
    """``φ = W₂ (m ∘ u) + C₂ ẑ``, of which the latter is there, and ``ψ = Λφ``."""
    along = np.zeros(phi.shape[1])
    for k in range(len(second)):
        for j in range(len(u)):
            _add_product(second[k, j], active[j], u[j], phi[k])
        _add_product(1.0, rank[k], phi[k], along)
    for k in range(len(second)):
        for i in range(len(along)):
            psi[k, i] = curve[k, i] * phi[k, i] - rank[k, i] * along[i]


@compiled
def _add_product(factor: Scalar, one: Array, two: Array, total: Array) -> None:
    for i in range(len(total)):
        total[i] += factor * one[i] * two[i]


@compiled
def _multiply_by(factors: Array, values: Array) -> None:
    for i in range(len(values)):
        values[i] *= factors[i]


@compiled
def _norms(rows: Array, result: Array) -> None:
    """Write the norm of each column."""
    result[:] = 0.0
    for k in range(len(rows)):
        _add_product(1.0, rows[k], rows[k], result)
    for i in range(len(result)):
        result[i] = np.sqrt(result[i])


@compiled
def _reachable_squares(reachable: Array, columns: Array, numbers: Array, u: Array, change: Array, sums: Array) -> None:
    """Write ``‖u‖² + ‖C₂‖²N²`` on units that may be active."""
    weights, norms, curvature, total = numbers[0], numbers[1], numbers[4], 0.0
    for i in range(len(change)):
        change[i] = norms[i] * norms[i] * columns[i]
    for j in range(len(u)):
        _add_masked_squares(reachable[j], u[j], change)
    for i in range(len(change)):
        total += weights[i] * curvature[i] * change[i]
    sums[1] += total


@compiled
def _add_masked_squares(mask: Array, values: Array, total: Array) -> None:
    for i in range(len(total)):
        total[i] += mask[i] * values[i] * values[i]


@compiled
def _switches(
    start: int,
    end: int,
    sample: Index,
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
    steep: Array,
    radius: float,
    change: Array,
    steps: Array,
    ramps: Array,
    cross: Array,
    sums: Array,
) -> None:
    """Put pairs into their bins, and make ``change`` Φ of eq. (13.10): how far ``φ`` moves in the ball."""
    switched, total = np.zeros(len(change)), 0.0
    for p in range(start, end):
        b, i, j = bins[p], sample[p], unit[p]
        if b < 0:
            continue
        along, slip = u[j, i], 0.0
        weight, reach = numbers[0, i], numbers[0, i] * numbers[1, i]
        switched[i] += second_norms[j] * abs(along)
        jump = weight * pull[p] * along
        if sign[p] == 0:
            steps[0, j, b] += abs(jump)
            steps[1, j, b] += abs(jump)
        else:
            steps[0 if sign[p] * jump < 0 else 1, j, b] += abs(jump)
        for k in range(len(second)):
            slip += gradient[k, i] * last[k, j] + psi[k, i] * second[k, j]
        ramps[0 if slip > 0 else 1, j, b] += reach * abs(slip)
        cross[0, j, b] += weight * numbers[2, i] * abs(along)
        cross[1, j, b] += reach * steep[i]
    for i in range(len(change)):
        total += numbers[0, i] * numbers[4, i] * switched[i] * switched[i]
        change[i] = radius * np.sqrt(change[i]) + switched[i]
    sums[2] += total


@compiled
def _totals(numbers: Array, sizes: Array, change: Array, sums: Array) -> None:
    products, cubic = 0.0, 0.0
    for i in range(len(change)):
        products += numbers[0, i] * numbers[3, i] * change[i]
        cubic += numbers[0, i] * numbers[5, i] * sizes[i]
    sums[0] += products
    sums[3] += cubic


@compiled
def _bend(inputs: Array, weights: Array, psi: Array, bent: Array) -> None:
    """Multiply ψ by the weights, and write its products with x̂."""
    for k in range(len(psi)):
        _multiply_by(weights, psi[k])
        for n in range(len(inputs)):
            for i in range(len(weights)):
                bent[k, n, i] = psi[k, i] * inputs[n, i]


@compiled
def _number_labels(lower: Array, upper: Array, largest: Array, phi: Array, sizes: Array, poison: Array) -> None:
    """Write ``max over q of s q·φ`` for labels that are numbers, eq. (13.15)."""
    for side in range(2):
        sign, support = 1.0 - 2.0 * side, poison[side]
        support[:] = 0.0
        for k in range(len(phi)):
            for i in range(len(support)):
                support[i] += max(sign * phi[k, i] * lower[k, i], sign * phi[k, i] * upper[k, i])
        for i in range(len(support)):
            support[i] = min(support[i], largest[i] * sizes[i])


@compiled
def _class_labels(own: Index, reach: Array, slope: float, phi: Array, poison: Array) -> None:
    """Write ``max over q of s q·φ`` for flips of classes, eq. (13.15)."""
    for side in range(2):
        sign, support = 1.0 - 2.0 * side, poison[side]
        support[:] = 0.0
        for k in range(len(phi)):
            for i in range(len(support)):
                if reach[k, i] > 0:
                    support[i] = max(support[i], slope * sign * (phi[own[i], i] - phi[k, i]))


@compiled
def _add_moved(largest: Array, change: Array, poison: Array) -> None:
    """Add ``‖q‖ Φ``, eq. (13.15)."""
    for side in range(2):
        _add_product(1.0, largest, change, poison[side])


@compiled
def _features(
    sides: Array,
    gradient: Array,
    last_norm: Scalar,
    moved_norm: Scalar,
    line: Array,
    slope: Array,
    half_widths: Array,
    scale: Array,
    order: int,
    feature_numbers: Array,
    label_change: Array,
    numbers: Array,
    psi: Array,
    sizes: Array,
    steep: Array,
    change: Array,
    radius: float,
    poison: Array,
) -> None:
    """Add what features add, together with labels, eq. (13.16) and (13.17)."""
    distance, factor, slack = feature_numbers[0], feature_numbers[1], feature_numbers[2]
    after, cubic = feature_numbers[3], feature_numbers[4]
    effect, first_order = np.zeros(len(change)), np.empty(len(change))
    for k in range(len(line)):
        _supports(line[k], half_widths, scale, order, first_order)
        _add_product(1.0, first_order, first_order, effect)
    _combine(slope, line, psi, gradient)
    _supports(line[0], half_widths, scale, order, first_order)
    for i in range(len(change)):
        both, reach = np.sqrt(sides[0, i]) + factor[i] * moved_norm, last_norm * distance[i]
        rest = radius * np.sqrt(both * both + reach * reach) + sides[1, i]
        total = first_order[i] + steep[i] * slack[i] + sizes[i] * cubic[i] + after[i] * change[i] + numbers[2, i] * rest
        total += (numbers[3, i] + after[i] + label_change[i]) * (np.sqrt(effect[i]) + rest + sides[2, i])
        poison[0, i] += total + sides[3, i]
        poison[1, i] += total + sides[4, i]


@compiled
def _feature_switches(
    start: int,
    end: int,
    sample: Index,
    unit: Index,
    bins: Index,
    sign: Array,
    pull: Array,
    move: Array,
    second_norms: Array,
    columns: Array,
    moved: Array,
    factor: Array,
    u: Array,
    sides: Array,
) -> None:
    """Add over units that features may switch: ``u²``, of E_s, ``‖W₂ⱼ‖|u_j|``, and jumps for both signs."""
    for p in range(start, end):
        i, j = sample[p], unit[p]
        along, jump = u[j, i], pull[p] * u[j, i]
        sides[0, i] += along * along
        sides[1, i] += second_norms[j] * factor[i] * moved[j] + columns[j] * move[p]
        sides[2, i] += second_norms[j] * abs(along)
        if bins[p] >= 0:
            sides[3, i] += abs(jump)
            sides[4, i] += abs(jump)
        else:
            sides[3 if sign[p] * jump < 0 else 4, i] += abs(jump)


@compiled
def _combine(slope: Array, line: Array, psi: Array, gradient: Array) -> None:
    """Put ``aᵀψ + bᵀg`` into the first row."""
    for d in range(line.shape[1]):
        _multiply_by(gradient[0], line[0, d])
        _add_product(1.0, slope[0, d], psi[0], line[0, d])
        for k in range(1, len(psi)):
            _add_product(1.0, slope[k, d], psi[k], line[0, d])
            _add_product(1.0, line[k, d], gradient[k], line[0, d])


@compiled
def _supports(rows: Array, half_widths: Array, scale: Array, order: int, result: Array) -> None:
    """Write the largest ``|row · Δx|`` of each sample."""
    result[:] = 0.0
    for d in range(len(rows)):
        for i in range(len(result)):
            result[i] += abs(rows[d, i]) * half_widths[d, i]
    if order == 0:
        return
    ball = np.zeros(len(result))
    for d in range(len(rows)):
        for i in range(len(result)):
            scaled = abs(rows[d, i]) * scale[d]
            ball[i] = ball[i] + scaled * scaled if order == 2 else max(ball[i], scaled)
    for i in range(len(result)):
        result[i] = min(result[i], np.sqrt(ball[i]) if order == 2 else ball[i])
