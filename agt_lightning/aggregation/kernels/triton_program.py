"""Sums of the n largest gains in Triton, by thresholds: gains are formed anew in every pass, and none is stored.

For any t >= 0, ``SEMax_n v <= n t + Σ_i (v_i - t)⁺``, with equality between the (n+1)-th and the n-th largest gain. A
pass over the samples at one t counts the gains above it, sums what they exceed it by, and finds its neighbors: the
smallest gain above t and the largest one that is not. The n-th largest gain is at least the former if more than n gains
are above t, and at most the latter if fewer are. Passes end when one gain is left; neighbors are gains themselves and
none is compared with a sum, so equal gains cost nothing and rounding decides nothing. The next t is where the counts at
both ends let n gains be expected. From the fifth pass on every second one halves the numbers of the type that are left,
so there are at most 133 in double precision; random gains take 2 to 20.

The sum is ``Σ (v_i - t)⁺ + c (t - s) + n s``, with s the neighbor below t and c <= n gains above it: nothing cancels.

Functions here are in Triton's language: shapes are powers of two, and tensors have axes o, k and samples.
"""

import triton
import triton.language as tl

_INTERPOLATED: tl.constexpr = tl.constexpr(4)
"""Passes before the first that halves the numbers that are left."""

_MARGIN: tl.constexpr = tl.constexpr(0.5)
"""Standard deviations by which a threshold is to pass the n-th largest gain, so that both ends move."""


@triton.jit
def _loaded(factor, units, places, count, samples):
    """Read (units, places) of a matrix of so many rows and samples; zero outside."""
    inside = (units < count)[:, None] & (places < samples)[None, :]
    return tl.load(factor + units.to(tl.int64)[:, None] * samples + places[None, :], mask=inside, other=0.0)


@triton.jit
def _largest_products(lower, upper, least, most):
    """Return the largest products of numbers in intervals, (o, k, samples)."""
    lower, upper, least, most = lower[:, None, :], upper[:, None, :], least[None, :, :], most[None, :, :]
    return tl.maximum(
        tl.maximum(lower * least, lower * most),
        tl.maximum(upper * least, upper * most),
    )


@triton.jit
def _gains(first, second, side, rows, columns, places, outputs, inputs, samples, KIND: tl.constexpr):
    """Form the gains of one side, (o, k, samples); zero outside."""
    plane = outputs.to(tl.int64) * samples
    if KIND == "stored":
        gains = _loaded(first, rows, places, outputs, samples)[:, None, :]
    elif KIND == "shared inputs":
        steep = _loaded(first + side * plane, rows, places, outputs, samples)[:, None, :]
        flat = _loaded(first + (1 - side) * plane, rows, places, outputs, samples)[:, None, :]
        z = _loaded(second, columns, places, inputs, samples)[None, :, :]
        gains = steep * tl.maximum(z, 0.0) + flat * tl.maximum(-z, 0.0)
    else:  # the lower bound of d z is minus the upper one of (-d) z
        sign = 1 - 2 * side
        dl = sign * _loaded(first + side * plane, rows, places, outputs, samples)
        du = sign * _loaded(first + (1 - side) * plane, rows, places, outputs, samples)
        el = sign * _loaded(first + (2 + side) * plane, rows, places, outputs, samples)
        eu = sign * _loaded(first + (3 - side) * plane, rows, places, outputs, samples)
        other = inputs.to(tl.int64) * samples
        zl = _loaded(second, columns, places, inputs, samples)
        zu = _loaded(second + other, columns, places, inputs, samples)
        yl = _loaded(second + 2 * other, columns, places, inputs, samples)
        yu = _loaded(second + 3 * other, columns, places, inputs, samples)
        gains = _largest_products(el, eu, yl, yu) - _largest_products(dl, du, zl, zu)
    return gains


@triton.jit
def _pass(
    first,
    second,
    side,
    rows,
    columns,
    outputs,
    inputs,
    samples,
    threshold,
    FIRST: tl.constexpr,
    KIND: tl.constexpr,
    O: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
):
    """Compare all gains with thresholds, (o, k).

    Returns:
        The number of gains above, the sum of what they exceed the threshold by, the smallest of them, and the largest
        of the others, at least zero. In the first pass the last is the largest of all, and if a gain is not finite, the
        sum is NaN.
    """
    excess = tl.zeros((O, K, M), threshold.dtype)
    below = tl.zeros((O, K, M), threshold.dtype)
    above = tl.full((O, K, M), float("inf"), threshold.dtype)
    count = tl.zeros((O, K, M), tl.int32)
    t = threshold[:, :, None]
    for start in range(0, samples, M):
        places = start + tl.arange(0, M)
        gains = _gains(first, second, side, rows, columns, places, outputs, inputs, samples, KIND)
        larger = gains > t
        count += larger.to(tl.int32)
        excess += tl.where(larger, gains - t, 0.0)
        above = tl.minimum(above, tl.where(larger, gains, float("inf")))
        if FIRST:
            excess += gains * 0.0  # a maximum of NaN and a number may be the number
            below = tl.maximum(below, gains)
        else:
            below = tl.maximum(below, tl.where(larger, 0.0, gains))
    return tl.sum(count, 2), tl.sum(excess, 2), tl.min(above, 2), tl.max(below, 2)


@triton.jit
def _halfway(least, most):
    """Return a number with as many numbers of the type below as above it, between two that are not negative."""
    if least.dtype == tl.float64:
        low, high = least.to(tl.int64, bitcast=True), most.to(tl.int64, bitcast=True)
    else:
        low, high = least.to(tl.int32, bitcast=True), most.to(tl.int32, bitcast=True)
    return (low + ((high - low) >> 1)).to(least.dtype, bitcast=True)


@triton.jit
def _next_threshold(least, most, more, fewer, n, step):
    """Return a threshold in [least, most), where n gains are expected above it.

    Args:
        least: a gain, at most the n-th largest.
        most: another, at least the n-th largest.
        more: number of gains at and above `least`, more than n.
        fewer: number of gains above `most`, fewer than n.
        n: number of gains in the sum.
        step: number of passes before.
    """
    more, fewer, wanted = more.to(tl.float32), fewer.to(tl.float32), n - 0.5
    share = (wanted - fewer) / tl.maximum(more - fewer, 1.0)
    spread = _MARGIN * tl.sqrt(tl.maximum((more - fewer) * share * (1.0 - share), 0.0))
    aim = tl.where(more - n > n - fewer, wanted + spread, wanted - spread)
    aim = tl.minimum(tl.maximum(aim, fewer + 0.25), tl.maximum(more - 0.25, fewer + 0.25))
    way = (more - aim) / tl.maximum(more - fewer, 1.0)
    if step % 2 == 0:
        tail = tl.log((more + 0.5) / (aim + 0.5)) / tl.log((tl.maximum(more, fewer + 1.0) + 0.5) / (fewer + 0.5))
        way = tl.where(more > 4.0 * tl.maximum(fewer, 0.5), tail, way)
    threshold = least + (most - least) * way.to(least.dtype)
    if (step >= _INTERPOLATED) & (step % 2 == 0):
        threshold = _halfway(least, most)
    return tl.where((threshold >= least) & (threshold < most), threshold, least)


@triton.jit(do_not_specialize=["outputs", "inputs", "samples", "n"])
def threshold_sums(
    first,
    second,
    sums,
    outputs,
    inputs,
    samples,
    n,
    KIND: tl.constexpr,
    O: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
):
    """Write the sums of the n largest gains of some outputs and inputs; NaN if a gain is not finite.

    Args:
        first: gains, (o, m), if "stored"; slopes for positive and for negative inputs, (2, o, m), for "shared inputs";
            lower and upper ends of clean and of poisoned d, (4, o, m), for "products".
        second: nothing that is read if "stored"; z, (k, m), for "shared inputs"; ends of z, (4, k, m), for "products".
        sums: (sides, o, k), overwritten.
        outputs: o.
        inputs: k.
        samples: m.
        n: largest number of gains in a sum, at least 1.
        KIND: what gains are made of.
        O: outputs of a program.
        K: inputs of a program.
        M: samples that are read together.
    """
    rows = tl.program_id(0) * O + tl.arange(0, O)
    columns = tl.program_id(1) * K + tl.arange(0, K)
    side = tl.program_id(2)
    zero = tl.zeros((O, K), sums.dtype.element_ty)

    more, total, least, most = _pass(
        first, second, side, rows, columns, outputs, inputs, samples, zero, True, KIND, O, K, M
    )
    wrong = total * 0.0
    active = (more > n) & (wrong == 0.0)
    least, most, fewer = tl.where(active, least, 0.0), tl.where(active, most, 0.0), tl.zeros((O, K), tl.int32)
    total = tl.where(active, n * most, total)
    active = active & (least < most)

    step = 0
    while tl.max(tl.max(active.to(tl.int32), 1), 0) > 0:
        threshold = _next_threshold(least, most, more, fewer, n, step)
        count, excess, above, below = _pass(
            first, second, side, rows, columns, outputs, inputs, samples, threshold, False, KIND, O, K, M
        )
        rises, falls = active & (count > n), active & (count <= n)
        least, more = tl.where(rises, above, least), tl.where(rises, count, more)
        most, fewer = tl.where(falls, below, most), tl.where(falls, count, fewer)
        total = tl.where(falls, excess + count * (threshold - below) + n * below, total)
        active = active & (least < most) & (rises | (count < n - 1))
        step += 1

    place = side * (outputs.to(tl.int64) * inputs) + rows.to(tl.int64)[:, None] * inputs + columns[None, :]
    tl.store(sums + place, total + wrong, mask=(rows < outputs)[:, None] & (columns < inputs)[None, :])
