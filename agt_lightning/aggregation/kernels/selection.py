"""Sums of the n largest entries, by thresholds and without branches; compiled for the CPU.

For any t >= 0, ``SEMax_n v <= n t + Σ_i (v_i - t)⁺``, and a t between the n-th and the (n+1)-th largest entry gives
equality: a top-n sum is the minimum over thresholds. A threshold a little below the n-th largest entry is read off a
sample of the entries. One pass keeps the few entries above it; among these, thresholds that are entries themselves are
tried until one separates n from the rest, each in one pass that writes larger and smaller entries to either side. No
pass has a branch that depends on an entry, so equal entries, as those of inactive units, cost nothing.

Reference:
    Floyd and Rivest, Expected time bounds for selection, Communications of the ACM 18, 1975: thresholds from a sample.
"""

from __future__ import annotations

import math

import numpy as np

from agt_lightning.arithmetic.compiled import Array, Scalar, compiled

_SAMPLE = 256
"""Entries from which a threshold is estimated."""

_CANDIDATES = 4
"""Samples of large inputs that are tried first, as a multiple of n: of fewer, many have units that are not active."""

_FEW = 64
"""Entries among which the median of three is a good threshold; among more, their rank decides."""


@compiled
def _total(entries: Array, count: int) -> Scalar:
    total = entries.dtype.type(0)
    for i in range(count):
        total += entries[i]
    return total


@compiled
def _median(first: Scalar, second: Scalar, third: Scalar) -> Scalar:
    return max(min(first, second), min(max(first, second), third))


@compiled
def _divide(entries: Array, count: int, threshold: Scalar, above: Array, below: Array) -> tuple[int, int]:
    """Write the entries above and below a threshold to two arrays, and return their numbers."""
    larger, smaller = 0, 0
    for i in range(count):
        entry = entries[i]
        above[larger] = entry
        larger += entry > threshold
        below[smaller] = entry
        smaller += entry < threshold
    return larger, smaller


@compiled
def _rank(entries: Array, above: Array, below: Array, count: int, rank: int) -> Scalar:
    """Return the entry that `rank` others exceed; the arrays are overwritten."""
    while True:
        threshold = _median(entries[0], entries[count // 2], entries[count - 1])
        larger, smaller = _divide(entries, count, threshold, above, below)
        if rank < larger:
            entries, above, count = above, entries, larger
        elif rank < count - smaller:
            return threshold
        else:
            rank -= count - smaller
            entries, below, count = below, entries, smaller


@compiled
def _largest(entries: Array, above: Array, below: Array, count: int, n: int) -> tuple[Scalar, Scalar]:
    """Return the sum of the n largest of the first `count` entries, and the smallest of these.

    Args:
        entries: overwritten, as the next two.
        above: as large.
        below: as large.
        count: number of entries, at least n.
        n: at least 1.
    """
    total = entries.dtype.type(0)
    while True:
        if count <= n:
            smallest = entries[0]
            for i in range(1, count):
                smallest = min(smallest, entries[i])
            return total + _total(entries, count), smallest
        threshold = _median(entries[0], entries[count // 2], entries[count - 1])
        if count > _FEW:
            other = _median(entries[count // 4], entries[3 * count // 4], entries[count // 3])
            threshold = max(threshold, other) if 2 * n < count else min(threshold, other)
        larger, smaller = _divide(entries, count, threshold, above, below)
        if larger >= n:
            entries, above, count = above, entries, larger
            continue
        total += _total(above, larger)
        if count - smaller >= n:
            return total + threshold * (n - larger), threshold
        total += threshold * (count - smaller - larger)
        n -= count - smaller
        entries, below, count = below, entries, smaller


@compiled
def _threshold(gains: Array, n: int, first: Array, second: Array, third: Array) -> Scalar:
    """Return a number >= 0 that is probably exceeded by n gains and by few more."""
    step = max(1, len(gains) // _SAMPLE)
    count = len(gains) // step
    for i in range(count):
        first[i] = gains[i * step]
    expected = n * count / len(gains)
    rank = int(expected + 2.5 * math.sqrt(expected) + 2)
    return max(gains.dtype.type(0), _rank(first, second, third, count, rank)) if rank < count else gains.dtype.type(0)


@compiled
def top_n_sum(gains: Array, n: int, first: Array, second: Array, third: Array) -> Scalar:
    """Return the largest sum of at most n gains.

    Args:
        gains: (m,), none of them NaN.
        n: largest number of gains in the sum.
        first: (m + 1,), as the next two; overwritten.
        second: the same.
        third: the same.
    """
    threshold, count = _threshold(gains, n, first, second, third), 0
    for attempt in range(2):
        count = 0
        for i in range(len(gains)):
            first[count] = gains[i]
            count += gains[i] > threshold
        if attempt or count >= n or threshold == 0:
            break
        threshold = gains.dtype.type(0)
    n = min(n, count)
    return _largest(first, second, third, count, n)[0] if n > 0 else gains.dtype.type(0)


@compiled
def row_sums(gains: Array, n: int, sums: Array) -> None:
    """Write the largest sum of at most n gains of each row.

    Args:
        gains: (e, m).
        n: largest number of gains in a sum.
        sums: (e,), overwritten.
    """
    size = gains.shape[1] + 1
    first, second, third = np.empty(size, gains.dtype), np.empty(size, gains.dtype), np.empty(size, gains.dtype)
    for row in range(len(gains)):
        total = _total(gains[row], size - 1)
        sums[row] = top_n_sum(gains[row], n, first, second, third) if total == total else total


@compiled
def _largest_inputs(z: Array, n: int, first: Array, second: Array, third: Array, samples: Array) -> tuple[int, Scalar]:
    """Find a few times n samples with the largest inputs.

    Args:
        z: (m,).
        n: largest number of gains in a sum.
        first: (m + 1,), as the next two; overwritten.
        second: the same.
        third: the same.
        samples: (m + 1,), whose first entries become the positions of these samples.

    Returns:
        Their number, and an upper bound on the sizes of all other inputs.
    """
    limit = _threshold(np.abs(z), _CANDIDATES * n, first, second, third)
    count = 0
    for i in range(len(z)):
        samples[count] = i
        count += abs(z[i]) > limit
    return count, limit


@compiled
def _slope_gains(steep: Array, flat: Array, z: Array, gains: Array) -> None:
    """Write the gains ``steep z⁺ + flat z⁻`` of all samples."""
    zero = z.dtype.type(0)
    for i in range(len(z)):
        gains[i] = steep[i] * max(z[i], zero) + flat[i] * max(-z[i], zero)


@compiled
def _candidate_gains(
    above: Array, below: Array, z: Array, samples: Array, gains: Array, losses: Array
) -> tuple[int, int]:
    """Write the positive gains ``a z⁺ + b z⁻`` and ``b z⁺ + a z⁻`` of some samples, and return their numbers.

    Args:
        above: a, (m,).
        below: b, (m,).
        z: of these samples.
        samples: their positions.
        gains: overwritten.
        losses: overwritten.
    """
    more, less, zero = 0, 0, z.dtype.type(0)
    for j in range(len(samples)):
        a, b = above[samples[j]], below[samples[j]]
        positive, negative = max(z[j], zero), max(-z[j], zero)
        gains[more] = a * positive + b * negative
        more += gains[more] > 0
        losses[less] = b * positive + a * negative
        less += losses[less] > 0
    return more, less


@compiled
def _final_sum(gains: Array, count: int, n: int, limit: Scalar, second: Array, third: Array) -> Scalar:
    """Return the sum of the n largest of some positive gains; -1 if gains of other samples may be larger.

    Args:
        gains: overwritten, as the two last.
        count: number of gains.
        n: largest number of gains in a sum.
        limit: upper bound on all other gains.
        second: (m + 1,).
        third: (m + 1,).
    """
    if count < n:
        return _total(gains, count) if limit <= 0 else gains.dtype.type(-1)
    total, smallest = _largest(gains, second, third, count, n)
    return total if smallest >= limit else gains.dtype.type(-1)


@compiled
def _largest_slope(above: Array, below: Array) -> Scalar:
    slope = above.dtype.type(0)
    for i in range(len(above)):
        slope = max(slope, max(above[i], below[i]))
    return slope


@compiled
def shared_input_sums(above: Array, below: Array, inputs: Array, n: int, up: Array, down: Array) -> None:
    """Write the top-n sums of ``a z⁺ + b z⁻`` and of ``b z⁺ + a z⁻`` for each output and input.

    The samples of the largest inputs are tried first. If the n-th largest gain among them is at least the largest slope
    of the output times the largest of the other inputs, no other sample matters (the threshold algorithm).

    Args:
        above: a, (o, m).
        below: b, (o, m).
        inputs: z, (k, m).
        n: largest number of gains in a sum.
        up: (o, k), overwritten.
        down: (o, k), overwritten.

    Reference:
        Fagin, Lotem and Naor, Optimal aggregation algorithms for middleware, Journal of Computer and System Sciences
        66, 2003.
    """
    samples, kind = above.shape[1], above.dtype
    first, second, third = np.empty(samples + 1, kind), np.empty(samples + 1, kind), np.empty(samples + 1, kind)
    gains, losses = np.empty(samples + 1, kind), np.empty(samples + 1, kind)
    pays = 2 * _CANDIDATES * n <= samples
    places = np.empty((len(inputs), samples + 1 if pays else 1), np.int32)
    counts, limits = np.zeros(len(inputs), np.int64), np.zeros(len(inputs), kind)
    values = np.empty((len(inputs), samples if pays else 1), kind)
    for k in range(len(inputs) if pays else 0):
        counts[k], limits[k] = _largest_inputs(inputs[k], n, first, second, third, places[k])
        for j in range(counts[k]):
            values[k, j] = inputs[k, places[k, j]]
    for o in range(len(above)):
        a, b, slope = above[o], below[o], _largest_slope(above[o], below[o])
        for k in range(len(inputs)):
            up[o, k], down[o, k] = -1, -1
            if pays:
                count, limit = counts[k], slope * limits[k]
                more, less = _candidate_gains(a, b, values[k, :count], places[k, :count], gains, losses)
                up[o, k] = _final_sum(gains, more, n, limit, second, third)
                down[o, k] = _final_sum(losses, less, n, limit, second, third)
            if up[o, k] < 0:
                _slope_gains(a, b, inputs[k], gains)
                up[o, k] = top_n_sum(gains[:samples], n, first, second, third)
            if down[o, k] < 0:
                _slope_gains(b, a, inputs[k], losses)
                down[o, k] = top_n_sum(losses[:samples], n, first, second, third)


@compiled
def outer_sums(
    clean_outputs: tuple[Array, Array],
    poisoned_outputs: tuple[Array, Array],
    clean_inputs: tuple[Array, Array],
    poisoned_inputs: tuple[Array, Array],
    n: int,
    up: Array,
    down: Array,
) -> None:
    """Write the top-n sums of the gains of products of intervals for each output and input.

    Args:
        clean_outputs: lower and upper bounds on d, (o, m).
        poisoned_outputs: the same of poisoned samples.
        clean_inputs: lower and upper bounds on z, (k, m).
        poisoned_inputs: the same of poisoned samples.
        n: largest number of gains in a sum.
        up: (o, k), overwritten.
        down: (o, k), overwritten.
    """
    samples, kind = clean_outputs[0].shape[1], clean_outputs[0].dtype
    first, second, third = np.empty(samples + 1, kind), np.empty(samples + 1, kind), np.empty(samples + 1, kind)
    gains, losses = np.empty(samples, kind), np.empty(samples, kind)
    for o in range(len(clean_outputs[0])):
        cl, cu, pl, pu = clean_outputs[0][o], clean_outputs[1][o], poisoned_outputs[0][o], poisoned_outputs[1][o]
        for k in range(len(clean_inputs[0])):
            zl, zu, yl, yu = clean_inputs[0][k], clean_inputs[1][k], poisoned_inputs[0][k], poisoned_inputs[1][k]
            total = kind.type(0)
            for i in range(samples):
                c1, c2, c3, c4 = cl[i] * zl[i], cl[i] * zu[i], cu[i] * zl[i], cu[i] * zu[i]
                p1, p2, p3, p4 = pl[i] * yl[i], pl[i] * yu[i], pu[i] * yl[i], pu[i] * yu[i]
                gains[i] = max(max(p1, p2), max(p3, p4)) - max(max(c1, c2), max(c3, c4))
                losses[i] = min(min(c1, c2), min(c3, c4)) - min(min(p1, p2), min(p3, p4))
                total += gains[i] + losses[i]
            up[o, k] = top_n_sum(gains, n, first, second, third) if total == total else total
            down[o, k] = top_n_sum(losses, n, first, second, third) if total == total else total
