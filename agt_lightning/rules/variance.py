"""The variance of a sample's entries along some axes.

Axis letters: ``N`` entries along these axes, ``c`` the correction: the sum of squares is divided by N - c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import multiply
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.normalization import deviation, variance_bounds
from agt_lightning.rules.roundings import Roundings
from agt_lightning.rules.values import Value, as_interval

_ROUNDINGS = 16
"""Roundings besides the sums: of the mean, the quotients, and the products of the gradient."""


@dataclass(frozen=True)
class VarianceRoundings(Roundings):
    """The roundings of a variance, as those of a normalization by it (docs/floats.md, section 4.3).

    It is off by ``s mean x²`` at most, with s = γ of the sums, also where a kernel takes a difference of mean squares,
    and a deviation from the mean by ``s (|x_i| + mean |x|)``.
    """

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Interval:
        assert isinstance(rule, Variance)
        x = rule.grouped(site, as_interval(inputs[0]))
        sums = 2 * x.shape[-1] + _ROUNDINGS
        error = arithmetic.relative(sums) * x.magnitude.square().mean(dim=-1, keepdim=True)
        variance = variance_bounds(x).widened(error, nonnegative=True)
        scaled = rule.placed(site, variance.mapped(rule.scale(site), nonnegative=True))
        return arithmetic.clear_of_underflow(arithmetic.outward(scaled, _ROUNDINGS), sums)

    @override
    def backward(
        self,
        rule: Rule,
        site: Site,
        grad: Interval,
        inputs: Sequence[Value],
        output: Value,
        arithmetic: Arithmetic,
    ) -> Sequence[Interval | None]:
        assert isinstance(rule, Variance)
        x = rule.grouped(site, as_interval(inputs[0]))
        sums = 2 * x.shape[-1] + _ROUNDINGS
        size = x.magnitude
        error = arithmetic.relative(sums) * (size + size.mean(dim=-1, keepdim=True))
        towards = rule.towards(site, grad, deviation(x).widened(error))
        return [arithmetic.clear_of_underflow(arithmetic.outward(towards, _ROUNDINGS), sums)]


class Variance(Rule):
    """``var`` over axes of a sample: the least value is exact; the gradient is ``2 (x_i - mean) / (N - c)``."""

    def roundings(self, site: Site) -> Roundings:
        """Those of all kernels for variances."""
        return VarianceRoundings()

    def problem(self, site: Site) -> str | None:
        """Refuse variances over the samples, of a 0-dimensional value, and of too few entries."""
        axes = self._axes(site)
        if 0 not in axes and self._divisor(site) > 0:
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} takes the spread of several samples, or divides by zero "
            "or less. Take it over the other axes, such as `x.var(dim=-1)`, of more than one entry."
        )

    def grouped(self, site: Site, x: Interval) -> Interval:
        """Return x with its N entries along the last axis."""
        axes = self._axes(site)
        last = tuple(range(-len(axes), 0))
        return x.rearranged(lambda bound: bound.movedim(axes, last).flatten(-len(axes)))

    def placed(self, site: Site, variance: Interval) -> Interval:
        """Return a value with one entry for each group, (..., 1), in the shape of the result."""
        axes, keepdim = self._axes(site), bool(site["keepdim"])
        rest = variance.rearranged(lambda bound: bound.squeeze(-1))
        for axis in sorted(axes) if keepdim else ():
            rest = rest.rearranged(lambda bound, axis=axis: bound.unsqueeze(axis))  # type: ignore[misc]
        return rest

    def scale(self, site: Site) -> Callable[[Tensor], Tensor]:
        """Return the map from the mean square deviation to the variance, ``N / (N - c)`` times it."""
        factor = self._entries(site) / self._divisor(site)
        return lambda bound: bound * factor

    def towards(self, site: Site, grad: Interval, deviations: Interval) -> Interval:
        """Return ``2 g (x_i - mean) / (N - c)`` in the shape of x, of deviations as `grouped`."""
        axes = self._axes(site)
        if not site["keepdim"]:
            for axis in sorted(axes):
                grad = grad.rearranged(lambda bound, axis=axis: bound.unsqueeze(axis))  # type: ignore[misc]
        shape = (deviations.shape[0], *site.shapes[0][1:])
        last = tuple(range(-len(axes), 0))
        sizes = tuple(shape[axis] for axis in axes)
        back = deviations.rearranged(lambda bound: bound.unflatten(-1, sizes).movedim(last, axes))
        wide = grad.rearranged(lambda bound: bound.expand(shape))
        return multiply(wide, back).scaled(2 / self._divisor(site))

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``Σ (x_i - mean)² / (N - c)``."""
        variance = variance_bounds(self.grouped(site, as_interval(inputs[0])))
        return self.placed(site, variance.mapped(self.scale(site), nonnegative=True))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``2 g (x_i - mean) / (N - c)``."""
        return [self.towards(site, grad, deviation(self.grouped(site, as_interval(inputs[0]))))]

    def _axes(self, site: Site) -> tuple[int, ...]:
        rank, given = len(site.shapes[0]), site["dim"]
        every = given if isinstance(given, list) and given else list(range(rank))
        return tuple(axis % rank for axis in every)

    def _entries(self, site: Site) -> int:
        count = 1
        for axis in self._axes(site):
            count *= site.shapes[0][axis]
        return count

    def _divisor(self, site: Site) -> float:
        given = site["correction"]
        return self._entries(site) - (1.0 if given is None else site.number("correction"))
