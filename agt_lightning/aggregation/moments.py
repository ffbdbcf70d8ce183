"""Bounds on top-n sums by matrix products alone, for gains that are products (`Gains`).

For gains g_i >= 0 and p >= 1 Hölder's inequality bounds the sum of any n of them,

    top-n(g) <= n^(1 - 1/p) (Σ g_i^p)^(1/p),

and ``Σ (α x + β y)^p`` is a sum of p + 1 matrix products. A few samples of very large α would spoil the bound, so α is
cut at a threshold τ of its unit, and what is above it counts as if all samples were poisoned:

    top-n(α x + β y) <= Σ (α - τ)⁺ x + top-n(min(α, τ) x + β y).

Every τ is sound, and samples may differ in it. Derived in docs/theory.md, eq. (4.3), (4.8), (4.9).
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.aggregation.descent import bounded_descent
from agt_lightning.aggregation.moment_terms import FactorRanges, Gains, Term
from agt_lightning.aggregation.weighted_sums import SampleSet
from agt_lightning.gradients import FactoredGradient, Stacked
from agt_lightning.interval import Interval
from agt_lightning.rounding import round_down, round_up, unit_roundoff

SMALLEST_EXPONENT = 4
"""Unless all samples are taken; p = 2 is the better choice only if more than a third of them are."""

_THRESHOLD_ROWS = 2048
"""Rows of which the threshold is a quantile."""

_ROUNDINGS = 64
"""Roundings of one term beside the sum: differences, weights and scales to the power of p, and products."""

_UNDERFLOW = 2.0**-960
"""More than 2^30 terms of binomial weights below 2^16 can lose by underflow, 2^-1022 at each of 2^10 roundings."""

_LAST_ROUNDINGS = 1 + 2.0**-48
"""A root, which is within a few units of the last place, a power of n and four operations."""


@dataclass(frozen=True)
class MomentSums:
    """Sums over samples, (2, o, k): for gains of the upper bound, then for those of the lower one.

    `excess` and `powers` are plain sums, `largest` is a maximum: those of disjoint sets of samples combine to those of
    their union, if exponents and scales agree.

    Args:
        excess: ``Σ (α - τ)⁺ x``.
        powers: ``Σ (min(α, τ) x + β y)^p`` by exponent p, of gains divided by ``scale``.
        largest: an upper bound on each gain.
        scale: at least as large as each gain that enters ``powers``, (o, 1).
        terms: number of summands of each sum.
    """

    excess: Tensor
    powers: Mapping[int, Tensor]
    largest: Tensor
    scale: Tensor
    terms: int

    @classmethod
    def of(cls, gains: Gains, ranges: FactorRanges, taken: int, exponents: Sequence[int]) -> MomentSums:
        """Sum up the gains of some samples, in one pass.

        Args:
            gains: of all poisonable samples.
            ranges: of their factors.
            taken: number of gains in the sum, for which the threshold is chosen.
            exponents: powers of two; one alone if the inputs move.
        """
        tau = threshold(gains.sampled_alpha(_THRESHOLD_ROWS), taken / gains.rows)
        unit = torch.where(ranges.outputs > 0, 2 * ranges.outputs, 1.0)
        sums = _RunningSums.none(unit.repeat(2), ranges.inputs, gains.columns(ranges), exponents)
        for terms in gains.terms(ranges):
            for term in terms:
                sums.add(term, tau)
        return cls(
            gains.folded(sums.excess, ranges),
            {p: gains.folded(power, ranges) for p, power in sums.powers.items()},
            gains.folded(sums.largest(), ranges, largest=True),
            (unit * ranges.inputs)[:, None],
            2 * gains.rows * (max(exponents) + 1),
        )

    def __add__(self, other: MomentSums) -> MomentSums:
        """Sums over both sets of samples."""
        scale = torch.maximum(self.scale, other.scale)
        shares = (self.scale / scale, other.scale / scale)
        return MomentSums(
            self.excess + other.excess,
            {p: self.powers[p] * shares[0] ** p + other.powers[p] * shares[1] ** p for p in self.powers},
            torch.maximum(self.largest, other.largest),
            scale,
            self.terms + other.terms,
        )

    def top_n(self, taken: int) -> Tensor:
        """Upper bounds on the sum of any ``taken`` gains, (2, o, k), rounded up.

        Args:
            taken: number of samples and positions that the adversary can take.
        """
        roundings = self.terms + _ROUNDINGS * max(self.powers)
        outward = 1 + 2 * roundings * unit_roundoff(torch.float64)
        bounds = [
            self.excess * outward + taken ** (1 - 1 / p) * ((power * outward + _UNDERFLOW) ** (1 / p)) * self.scale
            for p, power in self.powers.items()
        ]
        return torch.stack([*bounds, taken * self.largest * outward]).amin(dim=0) * _LAST_ROUNDINGS


@dataclass(frozen=True)
class _RunningSums:
    """Sums and maxima over the terms so far, changed in place; sums are (2 o, columns of x).

    Args:
        excess: ``Σ (α - τ)⁺ x``.
        powers: by exponent, of scaled gains.
        unit: what outputs are divided by, (2 o,).
        scale: what inputs are divided by.
        alpha: largest α, (2 o,).
        beta: largest β, (2 o,).
        x: largest x, (k,).
        y: largest y, (k,).
    """

    excess: Tensor
    powers: Mapping[int, Tensor]
    unit: Tensor
    scale: float
    alpha: Tensor
    beta: Tensor
    x: Tensor
    y: Tensor

    @classmethod
    def none(cls, unit: Tensor, scale: float, columns: int, exponents: Sequence[int]) -> _RunningSums:
        sums = unit.new_zeros(1 + len(exponents), len(unit), columns)
        powers = dict(zip(exponents, sums[1:], strict=True))
        tops = [unit.new_zeros(size) for size in (len(unit), len(unit), columns, columns)]
        return cls(sums[0], powers, unit, scale, *tops)

    def add(self, term: Term, tau: Tensor) -> None:
        """Add a chunk of samples, with α cut at ``tau``."""
        cut = torch.minimum(term.alpha, tau)
        self.excess.addmm_((term.alpha - cut).T, term.x)
        torch.maximum(self.alpha, term.alpha.amax(dim=0), out=self.alpha)
        torch.maximum(self.x, term.x.amax(dim=0), out=self.x)
        alpha, x = cut / self.unit, term.x / self.scale
        if term.y is None:
            for p, total in self.powers.items():
                total.addmm_(_raised(alpha, p).T, _raised(x, p))
            return
        torch.maximum(self.beta, term.beta.amax(dim=0), out=self.beta)
        torch.maximum(self.y, term.y.amax(dim=0), out=self.y)
        for p, total in self.powers.items():
            _add_binomial(total, (alpha, term.beta / self.unit), (x, term.y / self.scale), p)

    def largest(self) -> Tensor:
        """Return an upper bound on each gain: the largest of each factor."""
        return torch.outer(self.alpha, self.x) + torch.outer(self.beta, self.y)


def moment_descent(
    clean: FactoredGradient, poisoned: FactoredGradient | None, samples: SampleSet, n: int, budget: int
) -> Interval:
    """`bounded_descent` by matrix products alone: never narrower, and wider by a tenth or two in most cases.

    Gradients without factors, such as those of biases and embeddings, and of parameters used at several places, are
    summed exactly. Where a weight is used at several positions, as in a convolution, each counts as a sample of which
    the adversary takes n for every position: wider still.

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
        (tensor(10., dtype=torch.float64), tensor(10.0000, dtype=torch.float64))
    """
    parts = None if poisoned is None or n == 0 else part_gains(clean, poisoned, samples)
    if parts is None:
        return bounded_descent(clean, poisoned, samples, n, budget)
    total = bounded_descent(clean, None, samples, 0, budget)
    all_ranges = [gains.ranges() for gains in parts]
    taken = n * max(gains.positions for gains in parts)
    several = not any(ranges.inputs_move for ranges in all_ranges)
    exponents = exponents_for(taken, sum(gains.rows for gains in parts), several=several)
    sums = [MomentSums.of(gains, ranges, taken, exponents) for gains, ranges in zip(parts, all_ranges, strict=True)]
    upper, lower = functools.reduce(operator.add, sums).top_n(taken).reshape(2, *clean.shape)
    return Interval.trusted(
        round_down(total.lower.double() - lower, total.dtype), round_up(total.upper.double() + upper, total.dtype)
    )


def part_gains(clean: FactoredGradient, poisoned: FactoredGradient, samples: SampleSet) -> list[Gains] | None:
    """Return the gains of each micro-batch; None if some have no factors.

    Args:
        clean: bounds for the data as it is.
        poisoned: bounds for each poisonable sample under the adversary.
        samples: weights and poisonable samples.
    """
    if isinstance(clean, Stacked) and isinstance(poisoned, Stacked):
        return _stacked_gains(clean, poisoned, samples)
    inner, outer = clean.factors(), poisoned.factors()
    if inner is None or outer is None:
        return None
    return [Gains(inner, outer, samples.select(samples.weights).double(), samples.poisonable)]


def _stacked_gains(clean: Stacked, poisoned: Stacked, samples: SampleSet) -> list[Gains] | None:
    """Return the gains of micro-batches one by one; None if poisonable samples do not come in the same order."""
    if len(clean.parts) != len(poisoned.parts):
        return None
    found: list[Gains] = []
    counts = [part.samples for part in poisoned.parts]
    positions = None if samples.poisonable is None else samples.poisonable.split(counts)
    start = 0
    for index, (before, after) in enumerate(zip(clean.parts, poisoned.parts, strict=True)):
        rows = None if positions is None else positions[index] - start
        fits = before.samples == after.samples if rows is None else bool(((rows >= 0) & (rows < before.samples)).all())
        if not fits:
            return None
        gains = part_gains(before, after, SampleSet(samples.weights[start : start + before.samples], rows))
        if gains is None:
            return None
        found += gains
        start += before.samples
    return found


def exponents_for(taken: int, rows: int, *, several: bool) -> tuple[int, ...]:
    """Return powers of two near the exponent at which the bound is tightest.

    That is ``ln(rows / taken)`` for gains with exponential tails and about twice that for normal ones.

    Args:
        taken: number of gains in the sum.
        rows: number of gains.
        several: whether to use both; the cost of one grows with it where inputs move.

    Example:
        >>> exponents_for(50, 60_000, several=True), exponents_for(100, 10_000, several=False)
        ((8, 16), (4,))
    """
    if taken >= rows:
        return (1,)
    nearest = 2 ** round(math.log2(max(1.0, math.log(rows / taken))))
    first = max(SMALLEST_EXPONENT, nearest)
    return (first, 2 * first) if several else (first,)


def threshold(alphas: Tensor, share: float) -> Tensor:
    """Return, for each column, the entry that about this share of its entries exceeds; zero if all are taken.

    Args:
        alphas: (rows, columns), nonnegative.
        share: of entries that are taken.
    """
    if share >= 1:
        return alphas.new_zeros(alphas.shape[1])
    rank = max(1, round(share * len(alphas)))
    return alphas.kthvalue(len(alphas) - rank + 1, dim=0).values


def _add_binomial(total: Tensor, outputs: tuple[Tensor, Tensor], inputs: tuple[Tensor, Tensor], p: int) -> None:
    """Add ``Σ (a x + b y)^p`` in place, by the binomial theorem.

    Args:
        total: (2 o, k).
        outputs: a and b, (rows, 2 o).
        inputs: x and y, (rows, k).
        p: exponent.
    """
    (a, b), (x, y) = (tuple(_ladder(factor, p) for factor in pair) for pair in (outputs, inputs))
    for t in range(p + 1):
        total.addmm_(_product(a[p - t], b[t]).T, _product(x[p - t], y[t]), alpha=math.comb(p, t))


def _raised(value: Tensor, p: int) -> Tensor:
    """``value^p`` for a power of two, by squaring: faster than `torch.pow`."""
    for _ in range(p.bit_length() - 1):
        value = value.square()
    return value


def _ladder(value: Tensor, p: int) -> list[Tensor | None]:
    """``value^0`` to ``value^p``; None for the first, which is one."""
    powers: list[Tensor | None] = [None, value]
    for _ in range(p - 1):
        powers.append(_product(powers[-1], value))
    return powers


def _product(a: Tensor | None, b: Tensor | None) -> Tensor:
    if a is None or b is None:
        found = b if a is None else a
        assert found is not None
        return found
    return a * b
