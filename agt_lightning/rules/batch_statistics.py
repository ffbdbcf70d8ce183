"""Batch normalization in training mode, whose statistics are those of the whole batch (docs/theory.md, section 16).

Axis letters: ``r`` rows, ``b`` samples, ``c`` channels, ``t`` positions of a channel in one sample, ``N = b t`` entries
of a channel in the batch.

The rule sees the clean bounds of all samples and behind them the poisoned bounds of those that can be poisoned, as the
rows of one tensor, since each of them depends on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import multiply
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.arithmetic.order import uncrossed
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Site, name_of
from agt_lightning.rules.normalization import Normalization, Standardized
from agt_lightning.rules.values import Value, as_interval

_ROUNDINGS = 16
"""Roundings of an entry besides the sums over the batch, as for other normalizations."""


@dataclass(frozen=True)
class BatchRows:
    """The rows of both passes over one batch: all samples as they are, and behind them the poisoned ones.

    Args:
        samples: number b of samples.
        poisonable: positions of those with a poisoned row, in its order; None means all.
        n: number of samples that are poisoned at most; without poisoned rows it does not matter.
    """

    samples: int
    poisonable: Tensor | None = None
    n: int = 0

    def totals(self, values: Tensor) -> Tensor:
        """Return the largest sum over the batch in the runs that each row is about, by eq. (16.3).

        Args:
            values: the largest number of each row, (r, ...).

        Returns:
            (r, ...): for a clean row, over runs that leave its sample as it is; for a poisoned one, over the others.

        Example:
            >>> rows = BatchRows(samples=2, n=1)
            >>> rows.totals(torch.tensor([1.0, 2.0, 4.0, 7.0]))
            tensor([8., 6., 6., 8.])
        """
        clean = values[: self.samples]
        total = clean.sum(dim=0, keepdim=True)
        if len(values) == self.samples:
            return total.expand_as(values)
        changes = self._changes(values)
        gains = changes.clamp(min=0)
        largest = self._largest(gains)
        of_clean = (total + largest[self.n]).expand_as(clean).clone()
        of_clean[self._places] = total + _without_own(largest, gains, self.n)
        return torch.cat([of_clean, total + changes + _without_own(largest, gains, self.n - 1)])

    def total(self, values: Tensor) -> Tensor:
        """Return the largest sum over the batch in any run, by eq. (16.2), of the shape of one row.

        Args:
            values: the largest number of each row, (r, ...).
        """
        total = values[: self.samples].sum(dim=0)
        if len(values) == self.samples:
            return total
        return total + self._largest(self._changes(values).clamp(min=0))[self.n]

    def _changes(self, values: Tensor) -> Tensor:
        return values[self.samples :] - values[: self.samples][self._places]

    def _largest(self, gains: Tensor) -> Tensor:
        """Return the sums of the k largest gains for k = 0 .. n + 1, (n + 2, ...)."""
        kept = min(self.n + 1, len(gains))
        sums = gains.topk(kept, dim=0).values.cumsum(dim=0)
        repeated = sums[-1:].expand(self.n + 1 - kept, *sums.shape[1:])
        return torch.cat([torch.zeros_like(gains[:1]), sums, repeated])

    @property
    def _places(self) -> Tensor | slice:
        return slice(None) if self.poisonable is None else self.poisonable


def _without_own(largest: Tensor, gains: Tensor, count: int) -> Tensor:
    """Return the sum of so many largest gains of all samples but one, for each one."""
    return torch.minimum(largest[count], largest[count + 1] - gains)


@dataclass(frozen=True)
class Moments:
    """Bounds on mean and variance of a batch, as the rows of both passes see them.

    Args:
        x: the input, (r, c, t).
        rows: the rows.
        arithmetic: of the run and of the bounds; None for exact statistics in exact arithmetic.
    """

    x: Interval
    rows: BatchRows
    arithmetic: Arithmetic | None = None

    @property
    def entries(self) -> int:
        """The number N of entries of a channel."""
        return self.rows.samples * self.x.shape[2]

    def means(self, upper: Tensor) -> Tensor:
        """Return the largest mean over the batch, (r, c, 1), for the largest entries (r, c, t)."""
        return self.rows.totals(upper.sum(dim=2, keepdim=True)) / self.entries

    def mean(self, upper: Tensor) -> Tensor:
        """Return the largest mean over the batch in any run, (c, 1), for the largest entries (r, c, t)."""
        return self.rows.total(upper.sum(dim=2, keepdim=True)) / self.entries

    @cached_property
    def origin(self) -> Tensor:
        """The constant c near the mean, (c, 1)."""
        return self.x.center[: self.rows.samples].mean(dim=(0, 2))[:, None]

    @cached_property
    def average(self) -> Interval:
        """Bounds on μ in real arithmetic, (c, 1), by eq. (16.4)."""
        return uncrossed(-self.mean(-self.x.lower), self.mean(self.x.upper))

    def deviation(self, value: Interval) -> Interval:
        """Return bounds on ``a - mean(a)`` in real arithmetic, (r, c, t), by eq. (16.8).

        Args:
            value: a, (r, c, t).
        """
        own = value.width / self.entries
        lower = value.lower - self.means(value.upper) + own
        return uncrossed(lower, value.upper + self.means(-value.lower) - own)

    @cached_property
    def variance(self) -> Interval:
        """Bounds on v, (r, c, 1), by eq. (16.5) to (16.7); as a run computes it if there is an arithmetic."""
        low, high = self._squares
        return self._as_run(uncrossed(self._least(-self.means(-low), self.means), self.means(high)))

    @cached_property
    def variance_of_all(self) -> Interval:
        """The same in any run, (c, 1)."""
        low, high = self._squares
        return self._as_run(uncrossed(self._least(-self.mean(-low), self.mean), self.mean(high)))

    @cached_property
    def _squares(self) -> tuple[Tensor, Tensor]:
        squares = Interval.trusted(self.x.lower - self.origin, self.x.upper - self.origin).square()
        return squares.lower, squares.upper

    def _least(self, around_origin: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the least variance, from that around the constant or around the nearest possible mean."""
        nearest = torch.maximum(self.x.lower - self.average.upper, self.average.lower - self.x.upper)
        apart = -mean(-nearest.clamp(min=0).square())
        off = (self.average - Interval.point(self.origin)).magnitude.square()
        return torch.maximum(around_origin - off, apart).clamp(min=0)

    def _as_run(self, variance: Interval) -> Interval:
        return variance if self.arithmetic is None else variance.widened(self.error, nonnegative=True)

    @cached_property
    def size(self) -> Tensor:
        """The largest mean of |x|, (c, 1)."""
        return self.mean(self.x.magnitude)

    @cached_property
    def error(self) -> Tensor:
        """How far a run's variance is off at most, (c, 1); it may be a difference of mean squares."""
        return self.relative * self.mean(self.x.magnitude.square())

    @cached_property
    def relative(self) -> float:
        """The roundings of the sums over the batch."""
        return 0.0 if self.arithmetic is None else self.arithmetic.relative(2 * self.entries + _ROUNDINGS)

    def inverse(self, epsilon: float) -> Interval:
        """Return bounds on ``1 / √(v + ε)``, (r, c, 1)."""
        variance = self.variance
        bounds = (variance.upper + epsilon).rsqrt(), (variance.lower + epsilon).rsqrt()
        return Interval.trusted(*bounds, nonnegative=True)

    def normalized(self, epsilon: float) -> Interval:
        """Return bounds on ``(x - μ) / √(v + ε)``, (r, c, t); in real arithmetic but for the variance."""
        deviation = self.deviation(self.x)
        return uncrossed(-self._largest(-deviation.lower, epsilon), self._largest(deviation.upper, epsilon))

    def _largest(self, deviations: Tensor, epsilon: float) -> Tensor:
        """Return the largest ``d / √(v + ε)`` for d up to ``deviations`` and any variance that goes with it."""
        error = 0.0 if self.arithmetic is None else self.error
        largest = deviations * (self.variance.lower + epsilon).rsqrt()
        balanced = (deviations.square() / max(1, self.entries - 1) - error).clamp(min=0)
        together = deviations * (balanced + epsilon).rsqrt()
        # With an error, d / √(d² / (N - 1) - c + ε) rises with d if c <= ε alone.
        allowed = torch.as_tensor(error) <= epsilon
        largest = torch.where(allowed, torch.minimum(largest, together), largest)
        return torch.where(deviations >= 0, largest, deviations * (self.variance.upper + epsilon).rsqrt())

    def alignment(self, h: Interval, n: Interval) -> Interval:
        """Return bounds on ``mean(h n)``, (r, c, 1), by eq. (16.10).

        Args:
            h: gradients with respect to n, (r, c, t).
            n: normalized values.
        """
        centered = self._around_center(h)
        products = multiply(centered, n)
        most = self.means(centered.magnitude.square()).clamp(min=0).sqrt()
        upper = torch.minimum(self.means(products.upper), most)
        return uncrossed(torch.maximum(-self.means(-products.lower), -most), upper)

    def norm(self, h: Interval) -> Tensor:
        """Return the largest norm of h off its mean, (r, c, 1)."""
        return (self.entries * self.means(self._around_center(h).magnitude.square())).clamp(min=0).sqrt()

    def _around_center(self, h: Interval) -> Interval:
        center = h.center[: self.rows.samples].mean(dim=(0, 2))[:, None]
        return h.mapped(lambda bound: bound - center)


@dataclass(frozen=True)
class BatchStatistics(Normalization):
    """``batch_norm`` with mean and variance of the batch; sound, with excess width.

    Args:
        rows: which rows are samples as they are; None means all, so that nothing is poisoned.
    """

    rows: BatchRows | None = None

    @override
    def problem(self, site: Site) -> str | None:
        problem = super().problem(site)
        if problem is not None or len(site.shapes[0]) > 1:
            return problem
        return f"`{name_of(site.call)}` at {site.call.source} normalizes numbers without channels. Give them an axis."

    @override
    def normalized(self, site: Site, inputs: Sequence[Value]) -> Interval:
        moments, shape = self.moments(site, inputs), as_interval(inputs[0]).shape
        if moments.x.is_point and len(moments.x.lower) == moments.rows.samples:
            return self._exact(site, moments).values.rearranged(lambda bound: bound.reshape(shape))
        return moments.normalized(site.number("eps")).rearranged(lambda bound: bound.reshape(shape))

    @override
    def towards_input(self, site: Site, grad: Interval, inputs: Sequence[Value]) -> Interval:
        moments, epsilon = self.moments(site, inputs), site.number("eps")
        h = self._by_channel(grad)
        if moments.x.is_point and h.is_point and len(h.lower) == moments.rows.samples:
            result = self._exact_gradient(h.lower, self._exact(site, moments))
        else:
            result = self._gradient(moments, h, moments.normalized(epsilon), moments.inverse(epsilon))
        return result.rearranged(lambda bound: bound.reshape(grad.shape))

    @override
    def rounded_values(self, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Interval:
        """Those of `normalized` with the run's variance, off by its mean as well (docs/floats.md, section 4.3)."""
        moments, epsilon = self.moments(site, inputs, arithmetic), site.number("eps")
        slack = moments.relative * (moments.x.magnitude + moments.size) * moments.inverse(epsilon).upper
        values = arithmetic.outward(moments.normalized(epsilon).widened(slack), _ROUNDINGS)
        return values.rearranged(lambda bound: bound.reshape(as_interval(inputs[0]).shape))

    @override
    def magnitudes(self, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Tensor:
        moments = self.moments(site, inputs, arithmetic)
        size = (moments.x.magnitude + moments.size) * moments.inverse(site.number("eps")).upper
        return size.reshape(as_interval(inputs[0]).shape)

    @override
    def rounded_towards_input(
        self, site: Site, grad: Interval, inputs: Sequence[Value], arithmetic: Arithmetic
    ) -> tuple[Interval, Tensor]:
        """The gradient for statistics that cover the bounds' own rounding, and `_gradient_error`."""
        h, epsilon = self._by_channel(grad), site.number("eps")
        own = Arithmetic(None, arithmetic.own)
        moments = self.moments(site, inputs, own)
        slack = moments.relative * (moments.x.magnitude + moments.size) * moments.inverse(epsilon).upper
        n = own.outward(moments.normalized(epsilon).widened(slack), _ROUNDINGS)
        inverse = own.outward(moments.inverse(epsilon), _ROUNDINGS)
        result = self._gradient(moments, h, n, inverse)
        error = self._gradient_error(moments, h, n, inverse, epsilon, arithmetic)
        return result.rearranged(lambda bound: bound.reshape(grad.shape)), error.reshape(grad.shape)

    def moments(self, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic | None = None) -> Moments:
        """Return the statistics of the batch.

        Args:
            site: the call.
            inputs: bounds on its inputs, of all rows.
            arithmetic: of the run and of the bounds; None for exact statistics in exact arithmetic.
        """
        x = self._by_channel(as_interval(inputs[0]))
        return Moments(x, self.rows or BatchRows(len(x.lower)), arithmetic)

    @staticmethod
    def _by_channel(value: Interval) -> Interval:
        return value.rearranged(lambda bound: bound.reshape(*bound.shape[:2], -1))

    @staticmethod
    def _exact(site: Site, moments: Moments) -> Standardized:
        """Return normalized values and 1 / σ of a batch that is a point."""
        x = moments.x.lower
        centered = x - x.mean(dim=(0, 2), keepdim=True)
        inverse = (centered.square().mean(dim=(0, 2), keepdim=True) + site.number("eps")).rsqrt()
        return Standardized(Interval.point(centered * inverse), Interval.point(inverse))

    @staticmethod
    def _exact_gradient(h: Tensor, standardized: Standardized) -> Interval:
        n, inverse = standardized.values.lower, standardized.inverse.lower
        centered = h - h.mean(dim=(0, 2), keepdim=True)
        return Interval.point((centered - n * (centered * n).mean(dim=(0, 2), keepdim=True)) * inverse)

    @staticmethod
    def _gradient(moments: Moments, h: Interval, n: Interval, inverse: Interval) -> Interval:
        """Return bounds on ``(h - mean(h) - n mean(h n)) / σ``, limited by its norm, (r, c, t)."""
        moved = multiply(n, moments.alignment(h, n))
        result = multiply(moments.deviation(h) - moved, inverse)
        most = math.sqrt(1 - 1 / moments.entries) * moments.norm(h) * inverse.upper
        return uncrossed(torch.maximum(result.lower, -most), torch.minimum(result.upper, most))

    @staticmethod
    def _gradient_error(
        moments: Moments, h: Interval, n: Interval, inverse: Interval, epsilon: float, arithmetic: Arithmetic
    ) -> Tensor:
        """Return how far a run's gradient can be from that in real arithmetic, (r, c, t).

        As `normalization.backward_error`, whose means over a group are those over the batch here.
        """
        relative = arithmetic.relative(2 * moments.entries + 2 * _ROUNDINGS)
        size, towards, mean = moments.x.magnitude, h.magnitude, moments.mean
        mean_size, mean_towards = mean(size), mean(towards)
        error = relative * mean(size.square())
        least = (inverse.upper.square().reciprocal() - epsilon - error).clamp(min=0) + epsilon
        largest = torch.maximum(least.rsqrt(), inverse.upper)
        off = (1 + error / least) ** 3 - 1
        values, moved = n.magnitude, largest * relative * mean_size
        aligned = mean(towards * values)
        of_statistics = off * (towards + mean_towards + values * aligned)
        of_mean = (1 + off) * (moved * aligned + (values + moved) * moved * mean_towards)
        products = mean(towards * size) + mean_size * mean_towards
        of_sums = relative * (towards + (1 + values) * mean_towards + largest.square() * (size + mean_size) * products)
        return 2 * largest * (of_statistics + of_mean + of_sums)
