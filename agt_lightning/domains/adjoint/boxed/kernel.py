"""One pass over the samples of a step for some directions, with a box of parameters, compiled for the CPU.

Axis letters: ``q`` directions, ``i`` samples, ``j`` hidden units, ``l`` inputs with a one at their end, ``n`` features.
For every direction ``c = (C₁, c₂)``, rates included, and sample the loops find ``u = C₁x̂``, ``φ = Jc``, ``ψ = λφ`` and
the sums of docs/theory.md, eq. (15.5) to (15.13).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agt_lightning.arithmetic.compiled import Array, Scalar, compiled

Index = NDArray[np.int64]


class SampleArrays(NamedTuple):
    """Samples of a step at the nominal parameters.

    Args:
        inputs: x̂, (b, l).
        active: nominal mask, 0 or 1, (b, j).
        values: z, (b, j).
        moves: V, how far the box moves h, (b, j).
        numbers: per sample, by `COLUMNS`.
        slope: ``a = ∂f/∂x``, (b, n).
    """

    inputs: Array
    active: Array
    values: Array
    moves: Array
    numbers: Array
    slope: Array


COLUMNS = ("weight", "gradient", "curve", "change", "bend", "slack", "after", "bent", "fall", "rise")
"""w; g; λ; Γ and ``|Δg - λΔf|`` of clean samples; E_f, Γ' and ``|Δ'g - λΔ'f|`` of poisoned ones; labels, -q and q."""


class UnitArrays(NamedTuple):
    """Hidden units.

    Args:
        first: W₁ without biases, (j, n).
        second: v without its bias, (j,).
        width: half-widths of v, (j,).
        moved: how far features move the movement of h, (j,).
        half_widths: of features, (n,).
    """

    first: Array
    second: Array
    width: Array
    moved: Array
    half_widths: Array


class PairArrays(NamedTuple):
    """Pairs of a sample and a unit whose mask may differ from the nominal one.

    Args:
        start: first pair of each sample, (b + 1,).
        unit: (m,).
        near: whether the box alone can switch it, 0 or 1, (m,).
        sign: of the preactivation, 0 if rounding leaves it open, (m,).
        past: how far the box moves it past the kink, (m,).
        poisoned_past: how far features move it past the kink, (m,).
        doubt: how far rounding can leave a unit on the wrong side, (m,).
    """

    start: Index
    unit: Index
    near: Index
    sign: Array
    past: Array
    poisoned_past: Array
    doubt: Array


class Found(NamedTuple):
    """What the loops add up, for each direction and two signs s = +1, -1.

    Args:
        poison: upper bound on what each sample adds under poison, (q, 2, b).
        sums: jumps, slips, ``Σ w Γ Φ`` and ``Σ w |φ| bend``, (q, 2, 4).
        outer: ``Σ w ψ m_j x̂_l``, (q, l, j).
        last: ``Σ w (ψ ẑ_j + g m_j u_j)``, (q, j + 1).
    """

    poison: Array
    sums: Array
    outer: Array
    last: Array


def accumulate(
    samples: SampleArrays, units: UnitArrays, pairs: PairArrays, first: Array, second: Array, features: bool
) -> Found:
    """Add up everything that one step adds for some directions.

    Args:
        samples: of the step.
        units: of the step.
        pairs: units that may switch.
        first: C₁ transposed, (q, l, j).
        second: c₂, (q, j + 1).
        features: whether features are poisoned.
    """
    count, inputs, hidden = first.shape
    found = Found(
        np.zeros((count, 2, len(samples.inputs))),
        np.zeros((count, 2, 4)),
        np.zeros((count, inputs, hidden)),
        np.zeros((count, hidden + 1)),
    )
    for q in range(count):
        arguments: tuple[Any, ...] = (
            *samples, *units, *pairs, first[q], second[q], features, *(each[q] for each in found),
        )  # fmt: skip
        _one(*arguments)
    return found


@compiled
def _one(
    inputs: Array,
    active: Array,
    values: Array,
    moves: Array,
    numbers: Array,
    slope: Array,
    first: Array,
    second: Array,
    width: Array,
    moved: Array,
    half_widths: Array,
    start: Index,
    unit: Index,
    near: Index,
    sign: Array,
    past: Array,
    poisoned_past: Array,
    doubt: Array,
    rows: Array,
    last: Array,
    features: bool,
    poison: Array,
    sums: Array,
    outer: Array,
    final: Array,
) -> None:
    """Go through all samples for one direction; the arguments are the fields of the tuples above."""
    hidden, count = len(second), len(half_widths)
    u, through = np.empty(hidden), np.empty((count, hidden))
    shift, drift, size = np.zeros(hidden), np.empty(hidden), np.abs(last)
    for n in range(count):
        for j in range(hidden):
            shift[j] += half_widths[n] * abs(rows[n, j])
            through[n, j] = second[j] * rows[n, j] + last[j] * first[j, n]
    for j in range(hidden):
        drift[j] = width[j] * shift[j] + size[j] * moved[j]
    for i in range(len(inputs)):
        weight, g, curve, change, bend, slack, after, bent, fall, rise = numbers[i]
        u[:] = 0.0
        for n in range(inputs.shape[1]):
            _add(inputs[i, n], rows[n], u)
        phi, swing, slide = last[hidden], 0.0, 0.0
        for j in range(hidden):
            on = active[i, j]
            phi += on * second[j] * u[j] + last[j] * values[i, j]
            swing += on * (width[j] * abs(u[j]) + size[j] * moves[i, j])
            slide += on * drift[j]
        psi, jumps, jumps_down, kinks = curve * phi, 0.0, 0.0, 0.0
        for p in range(start[i], start[i + 1]):
            j = unit[p]
            far = abs(second[j]) + width[j]
            along = -sign[p] * g * second[j] * u[j]
            if near[p]:
                loose = abs(g * u[j]) * width[j]
                if sign[p] == 0:
                    loose += abs(g * second[j] * u[j])
                sums[0, 0] += weight * max(along + loose, 0.0)
                sums[1, 0] += weight * max(loose - along, 0.0)
                slip, loose = g * last[j] + psi * second[j], abs(psi) * width[j]
                back = (abs(slip) + loose) * doubt[p]
                sums[0, 1] += weight * (max(slip + loose, 0.0) * past[p] + back)
                sums[1, 1] += weight * (max(loose - slip, 0.0) * past[p] + back)
                swing += far * abs(u[j]) + size[j] * past[p]
                jumps += abs(g * second[j] * u[j])
                jumps_down += abs(g * second[j] * u[j])
            else:
                jumps += max(along, 0.0)
                jumps_down += max(-along, 0.0)
            kinks += abs(second[j] * u[j])
            slide += far * shift[j] + width[j] * abs(u[j]) + size[j] * poisoned_past[p]
        sums[0, 2] += weight * change * swing
        sums[0, 3] += weight * abs(phi) * bend
        up, down = rise * max(phi, 0.0) + fall * max(-phi, 0.0), rise * max(-phi, 0.0) + fall * max(phi, 0.0)
        most, turned = max(rise, fall), 0.0
        if features:
            straight = 0.0
            for n in range(count):
                b = _dot(active[i], through[n])
                turned += half_widths[n] * abs(b)
                straight += half_widths[n] * abs(psi * slope[i, n] + g * b)
            turned += slide + kinks
            base = straight + abs(psi) * slack + abs(phi) * bent + after * swing + abs(g) * slide
            base += (change + after) * turned
            up += base + jumps
            down += base + jumps_down
        poison[0, i] = weight * (up + most * (swing + turned))
        poison[1, i] = weight * (down + most * (swing + turned))
        for n in range(inputs.shape[1]):
            _add(weight * psi * inputs[i, n], active[i], outer[n])
        for j in range(hidden):
            final[j] += weight * (psi * values[i, j] + g * active[i, j] * u[j])
        final[hidden] += weight * psi
    sums[1, 2:] = sums[0, 2:]


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
