"""Bounds on top-n sums of gains by their p-th moments: matrix products alone, nothing is sorted.

For gains g_i >= 0 and p >= 1 Hölder's inequality bounds the sum of any n of them,

    SEMax_n {g} <= n^(1 - 1/p) (Σ_i g_i^p)^(1/p).

For gains bounded by ``α x + β y`` (`agt_lightning.aggregation.moment_terms`) the sum of powers takes p + 1 matrix
products. A few samples with a very large α would loosen the bound, so α is cut at a threshold τ of its output unit, and
the rest is summed as if all samples were poisoned:

    SEMax_n {α x + β y} <= Σ_i (α_i - τ)⁺ x_i + SEMax_n {min(α, τ) x + β y}.

Any τ >= 0 is sound, also one that differs between samples. Derived in docs/theory.md, eq. (4.3), (4.8), (4.9).
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.aggregation.descent import bounded_descent, moved_outward
from agt_lightning.aggregation.moment_terms import FactoredGains, FactorRanges, Term
from agt_lightning.aggregation.weighted_sums import SampleSet
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.gradients import FactoredGradient, Stacked, merged
from agt_lightning.interval import Interval
from agt_lightning.rounding import unit_roundoff

SMALLEST_EXPONENT = 4
"""Smallest p, unless all rows can be poisoned; p = 2 is tighter only if more than a third of them can."""

_THRESHOLD_ROWS = 2048
"""Number of rows whose quantile is the threshold τ."""

_ROUNDINGS = 64
"""Roundings of one term besides the sum: differences, weights and scales to the power of p, and products."""

_UNDERFLOW = 2.0**-960
"""More than 2^30 terms with binomial weights below 2^16 can lose to underflow, 2^-1022 at each of 2^10 roundings."""

_LAST_ROUNDINGS = 1 + 2.0**-48
"""Room for a root, right to a few units in the last place, a power of n and four operations."""


@dataclass(frozen=True)
class MomentSums:
    """Sums over samples, (2, o, k): for gains of the upper bound, then for those of the lower one.

    `excess` and `powers` are sums, `largest_gain` is a maximum. So the sums of two disjoint sets of samples add up to
    those of their union if the exponents agree.

    Args:
        excess: ``Σ (α - τ)⁺ x``.
        powers: ``Σ (min(α, τ) x + β y)^p`` by exponent p, of gains divided by ``scale``.
        largest_gain: an upper bound on each gain.
        scale: at least as large as each gain that enters ``powers``, (o, 1).
        summands: number of summands of each sum, for the rounding.
    """

    excess: Tensor
    powers: Mapping[int, Tensor]
    largest_gain: Tensor
    scale: Tensor
    summands: int

    @classmethod
    def of(cls, gains: FactoredGains, ranges: FactorRanges, poisoned_rows: int, exponents: Sequence[int]) -> MomentSums:
        """Sum the powers of the gains of some samples, in one pass.

        Args:
            gains: of all poisonable samples.
            ranges: of their factors.
            poisoned_rows: number of rows that can be poisoned; about as many exceed the threshold.
            exponents: powers of two; a single one if the adversary changes inputs.
        """
        tau = threshold(gains.alpha_of_some(_THRESHOLD_ROWS), poisoned_rows / gains.rows)
        unit = torch.where(ranges.largest_output > 0, 2 * ranges.largest_output, 1.0)
        sums = _RunningSums.zero(unit.repeat(2), ranges.largest_input, gains.columns(ranges), exponents)
        for terms in gains.terms(ranges):
            for term in terms:
                sums.add(term, tau)
        return cls(
            gains.joined_signs(sums.excess, ranges),
            {p: gains.joined_signs(power, ranges) for p, power in sums.powers.items()},
            gains.joined_signs(sums.largest_gain(), ranges, torch.maximum),
            (unit * ranges.largest_input)[:, None],
            2 * gains.rows * (max(exponents) + 1),
        )

    def __add__(self, other: MomentSums) -> MomentSums:
        """Return the sums over both sets of samples."""
        scale = torch.maximum(self.scale, other.scale)
        shares = (self.scale / scale, other.scale / scale)
        return MomentSums(
            self.excess + other.excess,
            {p: self.powers[p] * shares[0] ** p + other.powers[p] * shares[1] ** p for p in self.powers},
            torch.maximum(self.largest_gain, other.largest_gain),
            scale,
            self.summands + other.summands,
        )

    def top_n(self, n: int) -> Tensor:
        """Bound the sum of any n gains from above, (2, o, k), rounded up.

        Args:
            n: number of rows (samples times positions) that can be poisoned.
        """
        roundings = self.summands + _ROUNDINGS * max(self.powers)
        outward = 1 + 2 * roundings * unit_roundoff(torch.float64)
        bounds = [
            self.excess * outward + n ** (1 - 1 / p) * ((power * outward + _UNDERFLOW) ** (1 / p)) * self.scale
            for p, power in self.powers.items()
        ]
        return torch.stack([*bounds, n * self.largest_gain * outward]).amin(dim=0) * _LAST_ROUNDINGS


@dataclass(frozen=True)
class _RunningSums:
    """Sums over the terms added so far, (2 o, columns of x), changed in place.

    Args:
        excess: ``Σ (α - τ)⁺ x``.
        powers: by exponent, of scaled gains.
        output_scale: divisor of α and β, (2 o,).
        input_scale: divisor of x and y.
        max_alpha: largest α, (2 o,).
        max_beta: largest β, (2 o,).
        max_x: largest x, (columns,).
        max_y: largest y, (columns,).
    """

    excess: Tensor
    powers: Mapping[int, Tensor]
    output_scale: Tensor
    input_scale: float
    max_alpha: Tensor
    max_beta: Tensor
    max_x: Tensor
    max_y: Tensor

    @classmethod
    def zero(cls, output_scale: Tensor, input_scale: float, columns: int, exponents: Sequence[int]) -> _RunningSums:
        sums = output_scale.new_zeros(1 + len(exponents), len(output_scale), columns)
        powers = dict(zip(exponents, sums[1:], strict=True))
        maxima = [output_scale.new_zeros(size) for size in (len(output_scale), len(output_scale), columns, columns)]
        return cls(sums[0], powers, output_scale, input_scale, *maxima)

    def add(self, term: Term, tau: Tensor) -> None:
        """Add a term with α cut at ``tau``, (2 o,)."""
        cut = torch.minimum(term.alpha, tau)
        self.excess.addmm_((term.alpha - cut).T, term.x)
        _update_maximum(self.max_alpha, term.alpha)
        _update_maximum(self.max_x, term.x)
        alpha, x = cut / self.output_scale, term.x / self.input_scale
        if term.y is None:
            for p, total in self.powers.items():
                total.addmm_(_raised(alpha, p).T, _raised(x, p))
            return
        _update_maximum(self.max_beta, term.beta)
        _update_maximum(self.max_y, term.y)
        for p, total in self.powers.items():
            _add_binomial(total, (alpha, term.beta / self.output_scale), (x, term.y / self.input_scale), p)

    def largest_gain(self) -> Tensor:
        """Bound each gain by the largest value of each factor."""
        return torch.outer(self.max_alpha, self.max_x) + torch.outer(self.max_beta, self.max_y)


def _update_maximum(maximum: Tensor, rows: Tensor) -> None:
    torch.maximum(maximum, rows.amax(dim=0), out=maximum)


def moment_descent(
    clean: FactoredGradient, poisoned: FactoredGradient | None, samples: SampleSet, n: int, budget: int
) -> Interval:
    """Bound the descent direction as `bounded_descent` does, by matrix products alone.

    The bounds are never narrower than the exact ones, and wider by 10 to 20 percent in most cases. If a weight is used
    at T positions, as in a convolution, any n samples are bounded as any n T of their rows, which is looser. Gradients
    without factors (biases, embeddings) and those of parameters used at several places are summed exactly.

    Args:
        clean: bounds for the data as it is (equation 6).
        poisoned: bounds for each poisonable sample under the adversary (equation 7); None if nothing can be poisoned.
        samples: weights and poisonable samples.
        n: number of samples the adversary can change.
        budget: memory for temporary tensors of exact sums, in bytes.

    Returns:
        Interval of the parameter's shape.

    Example:
        >>> from agt_lightning.gradients import OuterProduct
        >>> ones = Interval.point(torch.ones(8, 1, 2).double())
        >>> clean = OuterProduct(ones, ones)
        >>> poisoned = OuterProduct(Interval(ones.lower, 2 * ones.upper), ones)
        >>> equal = SampleSet(torch.ones(8).double())
        >>> bounded_descent(clean, poisoned, equal, 2, 2**20).upper[0, 0], moment_descent(
        ...     clean, poisoned, equal, 2, 2**20
        ... ).upper[0, 0]
        (tensor(10.0000, dtype=torch.float64), tensor(10.0000, dtype=torch.float64))
    """
    parts = None if poisoned is None or n == 0 else factored_gains(clean, poisoned, samples)
    if parts is None:
        return bounded_descent(clean, poisoned, samples, n, budget)
    total = bounded_descent(clean, None, samples, 0, budget)
    ranges = [gains.ranges() for gains in parts]
    poisoned_rows = n * max(gains.positions for gains in parts)
    exponents = exponents_for(
        poisoned_rows,
        sum(gains.rows for gains in parts),
        count=1 if any(part.changes_inputs for part in ranges) else 2,
    )
    sums = [MomentSums.of(gains, part, poisoned_rows, exponents) for gains, part in zip(parts, ranges, strict=True)]
    increase, decrease = functools.reduce(operator.add, sums).top_n(poisoned_rows).reshape(2, *clean.shape)
    # Both sums of gains are rounded up already; `moved_outward` covers their difference to the total.
    products = clean.samples * clean.positions
    outward = 1 + Arithmetic(None, total.dtype).relative(products)  # what a gain takes back was rounded in this type
    wide = total.to(dtype=torch.float64)
    return moved_outward(wide, increase * outward, decrease * outward, products).to(dtype=total.dtype)


def factored_gains(
    clean: FactoredGradient, poisoned: FactoredGradient, samples: SampleSet
) -> list[FactoredGains] | None:
    """Return the gains of each micro-batch; None if some gradient has no factors.

    Args:
        clean: bounds for the data as it is.
        poisoned: bounds for each poisonable sample under the adversary.
        samples: weights and poisonable samples.
    """
    clean, poisoned = merged(clean), merged(poisoned)
    if isinstance(clean, Stacked) and isinstance(poisoned, Stacked):
        return _stacked_gains(clean, poisoned, samples)
    clean_factors, poisoned_factors = clean.factors(), poisoned.factors()
    if clean_factors is None or poisoned_factors is None:
        return None
    weights = samples.select(samples.weights).double()
    return [FactoredGains(clean_factors, poisoned_factors, weights, samples.poisonable)]


def _stacked_gains(clean: Stacked, poisoned: Stacked, samples: SampleSet) -> list[FactoredGains] | None:
    """Return the gains of the stacked parts; None also if the poisonable samples are not in the order of the parts."""
    if len(clean.parts) != len(poisoned.parts):
        return None
    gains: list[FactoredGains] = []
    counts = [part.samples for part in poisoned.parts]
    poisonable = None if samples.poisonable is None else samples.poisonable.split(counts)
    start = 0
    for index, (clean_part, poisoned_part) in enumerate(zip(clean.parts, poisoned.parts, strict=True)):
        stop = start + clean_part.samples
        rows = None if poisonable is None else poisonable[index] - start
        if rows is None:
            fits = clean_part.samples == poisoned_part.samples
        else:
            fits = bool(((rows >= 0) & (rows < clean_part.samples)).all())
        part = factored_gains(clean_part, poisoned_part, SampleSet(samples.weights[start:stop], rows)) if fits else None
        if part is None:
            return None
        gains += part
        start = stop
    return gains


def exponents_for(poisoned_rows: int, rows: int, *, count: int) -> tuple[int, ...]:
    """Return powers of two near the exponent p of the tightest bound.

    The best p is ``ln(rows / poisoned_rows)`` for gains with exponential tails, and about twice that for normal ones.

    Args:
        poisoned_rows: number of gains in the sum.
        rows: number of gains.
        count: number of exponents, each twice the one before; a bound with p takes p + 1 matrix products if the
            adversary changes inputs.

    Returns:
        ``count`` exponents; 1 alone if all rows can be poisoned, since the sum is exact then.

    Example:
        >>> exponents_for(50, 60_000, count=2), exponents_for(100, 10_000, count=1)
        ((8, 16), (4,))
    """
    if poisoned_rows >= rows:
        return (1,)
    nearest = 2 ** round(math.log2(max(1.0, math.log(rows / poisoned_rows))))
    first = max(SMALLEST_EXPONENT, nearest)
    return tuple(first * 2**doublings for doublings in range(count))


def threshold(alpha: Tensor, share: float) -> Tensor:
    """Return the quantile of each column that about a share of its entries exceeds; zero if the share is 1.

    Args:
        alpha: α >= 0, (rows, columns).
        share: share of the entries, above 0.
    """
    if share >= 1:
        return alpha.new_zeros(alpha.shape[1])
    rank = max(1, round(share * len(alpha)))
    return alpha.kthvalue(len(alpha) - rank + 1, dim=0).values


def _add_binomial(total: Tensor, outputs: tuple[Tensor, Tensor], inputs: tuple[Tensor, Tensor], p: int) -> None:
    """Add ``Σ (α x + β y)^p`` in place, by the binomial theorem.

    Args:
        total: (2 o, k).
        outputs: α and β, (rows, 2 o).
        inputs: x and y, (rows, k).
        p: exponent.
    """
    (alpha, beta), (x, y) = (tuple(_powers(factor, p) for factor in pair) for pair in (outputs, inputs))
    for t in range(p + 1):
        total.addmm_(_product(alpha[p - t], beta[t]).T, _product(x[p - t], y[t]), alpha=math.comb(p, t))


def _raised(value: Tensor, p: int) -> Tensor:
    """Return ``value^p`` for a power p of two, by squaring: faster than `torch.pow`."""
    for _ in range(p.bit_length() - 1):
        value = value.square()
    return value


def _powers(value: Tensor, p: int) -> list[Tensor | None]:
    """Return ``value^0`` to ``value^p``; None stands for ones."""
    powers: list[Tensor | None] = [None, value]
    for _ in range(p - 1):
        powers.append(_product(powers[-1], value))
    return powers


def _product(a: Tensor | None, b: Tensor | None) -> Tensor:
    if a is None or b is None:
        factor = b if a is None else a
        assert factor is not None
        return factor
    return a * b
