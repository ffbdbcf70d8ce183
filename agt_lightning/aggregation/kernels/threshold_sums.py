"""Sums of the n largest entries, by thresholds; compiled for the CPU.

For any t >= 0, ``SEMax_n v <= f(t) = n t + Σ_i (v_i - t)⁺``, and a t between the n-th and the (n+1)-th largest entry
gives equality: a top-n sum is the minimum of a convex, piecewise linear function, whose slope is n minus the number of
entries above t. So nothing is sorted or moved: passes over the entries that add and count, which the processor makes of
several entries at a time, lead to the minimum, and each of them ends with a bound that is sound.

Reference:
    Rockafellar and Uryasev, Optimization of conditional value-at-risk, Journal of Risk 2, 2000: the minimum over t.
    Kelley, The cutting-plane method for solving convex programs, Journal of the SIAM 8, 1960: the next t.
"""

from __future__ import annotations

import math

import numpy as np

from agt_lightning.arithmetic.compiled import Array, Scalar, compiled

_SAMPLE = 256
"""Entries from which a threshold is estimated."""

_TIERS = (2, 3, 4, 6, 8, 16)
"""Samples with large inputs that are tried before all, as multiples of n."""

_FEW = 24
"""Entries between two thresholds below which the tangents at these lead to the minimum fastest."""

_PASSES = 60
"""Passes after which the best bound is taken as it is: sound, and off by less than what two thresholds differ."""


@compiled
def _excess(entries: Array, count: int, threshold: Scalar) -> tuple[Scalar, int]:
    """Return ``Σ (v - t)⁺`` over the first entries, and how many of them are above t."""
    zero = entries.dtype.type(0)
    total, above = zero, 0
    for i in range(count):
        excess = entries[i] - threshold
        total += max(excess, zero)
        above += excess > zero
    return total, above


@compiled
def _upwards(threshold: Scalar, excess: Scalar, above: int, n: int) -> Scalar:
    """Return a threshold that about n entries are above, if their excess over the last one falls off exponentially."""
    return threshold + excess / above * math.log(above / n) * 1.05


@compiled
def _downwards(threshold: Scalar, excess: Scalar, above: int, n: int) -> Scalar:
    """Return a threshold that n entries or a few more are above, by the same law; zero where nothing is known."""
    mean = excess / above if above else threshold / 4
    return max(threshold - max(mean * math.log(n / max(above, 0.5)) * 1.1, threshold / 1024), threshold * 0)


@compiled
def _next(entries: Array, count: int, threshold: Scalar) -> Scalar:
    """Return the smallest of the first entries that are above a threshold; infinity if none is."""
    smallest = entries.dtype.type(np.inf)
    for i in range(count):
        smallest = min(smallest, entries[i] if entries[i] > threshold else smallest)
    return smallest


@compiled
def _between(low: tuple[Scalar, Scalar, int], high: tuple[Scalar, Scalar, int], n: int, by_counts: bool) -> Scalar:
    """Return a threshold between two of which more and less than n entries are above.

    Args:
        low: threshold, value of f and number of entries above the threshold.
        high: the same.
        n: number of entries that are wanted above it.
        by_counts: whether the number of entries above is taken to fall off exponentially between the two; if not, the
            tangents at both meet at the result.
    """
    if by_counts:
        share = math.log(low[2] / n) / math.log(low[2] / max(high[2], 0.5))
        return low[0] + share * (high[0] - low[0])
    return (high[1] - low[1] + (n - low[2]) * low[0] - (n - high[2]) * high[0]) / (high[2] - low[2])


@compiled
def threshold_sum(entries: Array, count: int, n: int, threshold: Scalar) -> tuple[Scalar, Scalar]:
    """Return the largest sum of at most n of the first entries, and a threshold t >= 0 with ``f(t)`` equal to it.

    Args:
        entries: v, (m,), none of them NaN or infinite.
        count: number of entries.
        n: at least 1.
        threshold: t >= 0 to start from; the closer, the fewer passes.
    """
    kind = entries.dtype.type
    low: tuple[Scalar, Scalar, int] = (kind(0), kind(0), -1)
    high: tuple[Scalar, Scalar, int] = (kind(0), kind(0), -1)
    best: Scalar = kind(np.inf)
    best_at = threshold
    for attempt in range(_PASSES):
        excess, above = _excess(entries, count, threshold)
        value = n * threshold + excess
        if value < best:
            best, best_at = value, threshold
        if above == n or (above < n and threshold == 0):
            return value, threshold
        if above > n:
            low = (threshold, value, above)
        else:
            high = (threshold, value, above)
        if low[2] < 0:
            threshold = _downwards(threshold, excess, above, n) if attempt < 4 else kind(0)
        elif high[2] < 0:
            threshold = _upwards(threshold, excess, above, n) if attempt < 6 else 2 * (threshold + excess)
        else:
            threshold = kind(_between(low, high, n, low[2] - high[2] > _FEW and attempt % 3 != 0))
            if not low[0] < threshold < high[0]:
                break
    if low[2] < 0:
        return best, best_at
    for _ in range(_PASSES):  # from one entry to the next: past the equal ones where counts are never n
        threshold = _next(entries, count, low[0])
        excess, above = _excess(entries, count, threshold)
        if above <= n:
            return n * threshold + excess, threshold
        low = (threshold, low[1], above)
    return best, best_at


@compiled
def _estimate(entries: Array, n: int, sample: Array) -> Scalar:
    """Return a number >= 0 that n entries and probably a few more are above.

    Args:
        entries: (m,).
        n: at least 1.
        sample: (m + 1,), overwritten.
    """
    step = max(1, len(entries) // _SAMPLE)
    count = len(entries) // step
    for i in range(count):
        sample[i] = entries[i * step]
    expected = n * count / len(entries)
    rank = int(expected + 2.5 * math.sqrt(expected) + 2)
    zero = entries.dtype.type(0)
    return threshold_sum(sample, count, rank, max(zero, sample[count // 2]))[1] if rank < count else zero


@compiled
def _above(entries: Array, threshold: Scalar, kept: Array) -> int:
    """Write the entries above a threshold, which are few, to the begin of an array, and return their number."""
    count = 0
    for i in range(len(entries)):
        kept[count] = entries[i]
        count += entries[i] > threshold
    return count


@compiled
def top_n_sum(gains: Array, n: int, kept: Array) -> Scalar:
    """Return the largest sum of at most n gains.

    Args:
        gains: (m,), none of them NaN or infinite.
        n: largest number of gains in the sum.
        kept: (m + 1,), overwritten.
    """
    if n <= 0:
        return gains.dtype.type(0)
    threshold = _estimate(gains, n, kept)
    if 8 * n <= len(gains):
        count = _above(gains, threshold, kept)
        if count >= n:
            return threshold_sum(kept, count, n, threshold)[0]
    return threshold_sum(gains, len(gains), n, threshold)[0]


@compiled
def _total(entries: Array, count: int) -> Scalar:
    total = entries.dtype.type(0)
    for i in range(count):
        total += entries[i]
    return total


@compiled
def row_sums(gains: Array, n: int, sums: Array) -> None:
    """Write the largest sum of at most n gains of each row; that of a row with NaN or infinity is NaN or infinite.

    Args:
        gains: (e, m).
        n: largest number of gains in a sum.
        sums: (e,), overwritten.
    """
    kept = np.empty(gains.shape[1] + 1, gains.dtype)
    for row in range(len(gains)):
        total = _total(gains[row], gains.shape[1])
        sums[row] = top_n_sum(gains[row], n, kept) if np.isfinite(total) else total


@compiled
def _tiers(z: Array, n: int, places: Array, sizes: Array, ends: Array, limits: Array, kept: Array) -> None:
    """Put the samples with the largest inputs first: about 2 n, then 3 n, and so on.

    Args:
        z: (m,).
        n: largest number of gains in a sum.
        places: (m,), whose first entries become the positions of these samples; plus m if z is negative.
        sizes: (m,), whose first entries become the sizes of their inputs.
        ends: (tiers,), how many samples there are up to the end of each tier.
        limits: (tiers,), upper bounds on the sizes of the inputs of all samples that are in no tier up to this one.
        kept: (m + 1,), overwritten.
    """
    magnitudes = np.abs(z)
    for tier in range(len(ends)):
        limits[tier] = _estimate(magnitudes, _TIERS[tier] * n, kept)
        if tier:  # a sample above a limit must be above all later ones, however the estimates are
            limits[tier] = min(limits[tier], limits[tier - 1])
    rest, count = np.empty(len(z) + 1, np.int32), 0
    for i in range(len(z)):
        rest[count] = i
        count += magnitudes[i] > limits[-1]
    done = 0
    for tier in range(len(ends)):
        left = 0
        for j in range(count):
            i = rest[j]
            places[done], sizes[done] = i + len(z) * (z[i] < 0), magnitudes[i]
            rest[left] = i
            large = magnitudes[i] > limits[tier]
            done += large
            left += not large
        count, ends[tier] = left, done


@compiled
def _slope_gains(steep: Array, flat: Array, z: Array, gains: Array) -> None:
    """Write the gains ``steep z⁺ + flat z⁻`` of all samples."""
    zero = z.dtype.type(0)
    for i in range(len(z)):
        gains[i] = steep[i] * max(z[i], zero) + flat[i] * max(-z[i], zero)


@compiled
def _some_gains(slopes: Array, places: Array, sizes: Array, gains: Array) -> None:
    """Write the gains of some samples.

    Args:
        slopes: of positive inputs of all samples, then of negative ones, (2 m,).
        places: of these samples and their signs among the slopes.
        sizes: of their inputs.
        gains: overwritten.
    """
    for j in range(len(places)):
        gains[j] = slopes[places[j]] * sizes[j]


@compiled
def _largest_slope(above: Array, below: Array) -> Scalar:
    slope = above.dtype.type(0)
    for i in range(len(above)):
        slope = max(slope, max(above[i], below[i]))
    return slope


@compiled
def _sum_by_tiers(
    slopes: Array,
    slope: Scalar,
    places: Array,
    sizes: Array,
    ends: Array,
    limits: Array,
    n: int,
    guess: Scalar,
    gains: Array,
) -> tuple[Scalar, Scalar]:
    """Return a top-n sum from samples with large inputs, and its threshold relative to the slope; -1 if that fails.

    A threshold that is at least the slope times a limit is above the gains of all samples beyond that limit, so that
    they add nothing to ``f`` (the threshold algorithm).

    Args:
        slopes: of positive inputs of all samples, then of negative ones, (2 m,).
        slope: the largest of all.
        places: of samples and signs among the slopes, by tiers.
        sizes: of their inputs.
        ends: of the tiers.
        limits: upper bounds on the sizes of the inputs of all other samples, by tiers.
        n: largest number of gains in a sum.
        guess: of the threshold, relative to the slope.
        gains: (m + 1,), overwritten.

    Reference:
        Fagin, Lotem and Naor, Optimal aggregation algorithms for middleware, Journal of Computer and System Sciences
        66, 2003.
    """
    threshold, done = guess * slope, 0
    for tier in range(len(ends)):
        if limits[tier] > 0.95 * guess and tier < len(ends) - 1:
            continue
        end = ends[tier]
        _some_gains(slopes, places[done:end], sizes[done:end], gains[done:end])
        done = end
        total, threshold = threshold_sum(gains, end, n, threshold)
        if threshold >= slope * limits[tier]:
            return total, threshold / slope
    return slope * 0 - 1, guess


@compiled
def shared_input_sums(above: Array, below: Array, inputs: Array, n: int, up: Array, down: Array) -> None:
    """Write the top-n sums of ``a z⁺ + b z⁻`` and of ``b z⁺ + a z⁻`` for each output and input.

    The samples of the largest inputs are tried first, and thresholds close to those of the output before.

    Args:
        above: a, (o, m), finite, as all others.
        below: b, (o, m).
        inputs: z, (k, m).
        n: largest number of gains in a sum.
        up: (o, k), overwritten.
        down: (o, k), overwritten.
    """
    samples, kind, columns = above.shape[1], above.dtype, len(inputs)
    gains, kept = np.empty(samples + 1, kind), np.empty(samples + 1, kind)
    tiers = 0
    while n > 0 and tiers < len(_TIERS) and 2 * _TIERS[tiers] * n <= samples:
        tiers += 1
    places, sizes = np.empty((columns, samples + 1), np.int32), np.empty((columns, samples + 1), kind)
    ends, limits = np.zeros((columns, tiers), np.int64), np.zeros((columns, tiers), kind)
    guesses, slopes = np.zeros((2, columns), kind), np.empty((2, 2 * samples), kind)
    for k in range(columns if tiers else 0):
        _tiers(inputs[k], n, places[k], sizes[k], ends[k], limits[k], kept)
        guesses[:, k] = limits[k, 0]
    for o in range(len(above)):
        slope, changes = _largest_slope(above[o], below[o]), np.ones(2, kind)
        slopes[0, :samples], slopes[0, samples:] = above[o], below[o]
        slopes[1, :samples], slopes[1, samples:] = below[o], above[o]
        for side in range(2):
            sums = up[o] if side == 0 else down[o]
            for k in range(columns):
                total, guess = slope * 0 - (slope > 0), changes[side] * guesses[side, k]
                if tiers and slope > 0:
                    total, threshold = _sum_by_tiers(
                        slopes[side], slope, places[k], sizes[k], ends[k], limits[k], n, guess, gains
                    )
                    if total > 0 and guesses[side, k] > 0:
                        changes[side] = threshold / guesses[side, k]
                    guesses[side, k] = threshold
                if total < 0:
                    _slope_gains(slopes[side, :samples], slopes[side, samples:], inputs[k], gains)
                    total = top_n_sum(gains[:samples], n, kept)
                sums[k] = total


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
    kept, gains, losses = np.empty(samples + 1, kind), np.empty(samples, kind), np.empty(samples, kind)
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
            up[o, k] = top_n_sum(gains, n, kept) if total == total else total
            down[o, k] = top_n_sum(losses, n, kept) if total == total else total
