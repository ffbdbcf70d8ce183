"""Normalization by fixed statistics (batch) and by the statistics of the sample itself (layer, group, instance).

Axis letters: ``b`` samples, ``m`` groups of a sample that are normalized on their own, ``N`` entries of a group,
``c`` channels.

With m the mean of x over a group, v its variance and ``σ = √(v + ε)``, the normalized values are ``n = (x - m) / σ``.
Their sum is zero and the sum of their squares at most N. With h the gradient with respect to n, the one with respect to
x is ``(h_i - mean(h) - n_i mean(h n)) / σ``.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import multiply
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.arithmetic.order import uncrossed
from agt_lightning.capture.graph import ITEM, Reference
from agt_lightning.gradients import Elementwise, FactoredGradient
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.roundings import Roundings
from agt_lightning.rules.values import Value, as_interval

_ROUNDINGS = 16
"""Roundings of an entry besides the sums over a group: root, reciprocal, products, sums of three terms."""

BATCH_STATISTICS = (
    "is batch normalization in training mode: it uses statistics of the whole batch, so one sample reaches all "
    "gradients. Use `GroupNorm`, or keep that layer in `eval()` during training, where it uses its running statistics"
)
"""Why batch normalization with statistics of the batch has no rule."""


@dataclass(frozen=True)
class NormalizationRoundings(Roundings):
    """The roundings of a normalization, whose kernels may compute ``x (γ / σ) + (β - m γ / σ)`` (docs/floats.md, 4.3).

    Their errors are relative to ``(|x| + |m|) |γ| / σ + |β|``, which can be far above the result. With statistics of
    the sample itself, mean and variance are rounded too: the variance may be a difference of mean squares, right up to
    the rounding of the mean square. The same holds for the sums of the backward pass.
    """

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Interval:
        assert isinstance(rule, Normalization)
        output, slack = rule.rounded_forward(site, inputs, arithmetic)
        return output.widened(slack + arithmetic.absolute(_ROUNDINGS))

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
        assert isinstance(rule, Normalization)
        gain = rule.parameter(site, inputs, "weight")
        towards = grad if gain is None else arithmetic.outward(multiply(grad, gain), 2)
        result, slack = rule.rounded_towards_input(site, towards, inputs, arithmetic)
        return [result.widened(slack + arithmetic.absolute(_ROUNDINGS)), *[None] * (len(inputs) - 1)]

    @override
    def parameter_gradient(
        self,
        rule: Rule,
        site: Site,
        position: int,
        grad: Interval,
        inputs: Sequence[Value],
        arithmetic: Arithmetic,
    ) -> FactoredGradient:
        """Return the factors, from the normalized values as a run computes them."""
        assert isinstance(rule, Normalization)
        shared = math.prod(site.shapes[0][1:]) // math.prod(site.shapes[position])
        samples = max(site.call.shape[0], grad.shape[0])
        roundings = (shared * samples if shared > 1 else 1) + _ROUNDINGS
        values = rule.rounded_values(site, inputs, arithmetic)
        return rule.summed(site, position, arithmetic.outward(grad, roundings), values)


class Normalization(Rule):
    """``y = n γ + β``, which all normalizations share; a subclass bounds n and its gradient."""

    def roundings(self, site: Site) -> Roundings:
        """Those of all kernels for normalizations."""
        return NormalizationRoundings()

    def problem(self, site: Site) -> str | None:
        """Refuse parameters that depend on the batch, and results other than the first one."""
        if not site.samples[0] or any(site.samples[1:]):
            return f"`{name_of(site.call)}` at {site.call.source} has parameters that depend on the batch. Fix them."
        if site.call.arguments.get(ITEM, 0) != 0:
            return f"`{name_of(site.call)}` at {site.call.source} uses the statistics themselves, which have no bounds."
        return None

    @abstractmethod
    def normalized(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """Return bounds on n, in the input's shape."""

    @abstractmethod
    def towards_input(self, site: Site, grad: Interval, inputs: Sequence[Value]) -> Interval:
        """Return bounds on the gradient with respect to the input, given h."""

    @abstractmethod
    def rounded_values(self, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Interval:
        """Return bounds on n as a run computes it, whatever the form of its formula."""

    @abstractmethod
    def magnitudes(self, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Tensor:
        """Return ``(|x| + |m|) / σ`` at its largest, which rounding errors of n are relative to."""

    @abstractmethod
    def rounded_towards_input(
        self, site: Site, grad: Interval, inputs: Sequence[Value], arithmetic: Arithmetic
    ) -> tuple[Interval, Tensor]:
        """Return bounds on the gradient with respect to the input in real arithmetic, and a run's distance to them."""

    def rounded_forward(self, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> tuple[Interval, Tensor]:
        """Return bounds on ``n γ + β``, and the error of the kernels that compute it in another form."""
        result, size = self.rounded_values(site, inputs, arithmetic), self.magnitudes(site, inputs, arithmetic)
        gain, bias = self.parameter(site, inputs, "weight"), self.parameter(site, inputs, "bias")
        if gain is not None:
            result, size = multiply(result, gain), size * gain.magnitude
        if bias is not None:
            result, size = result + bias, size + bias.magnitude
        return result, size * arithmetic.relative(_ROUNDINGS)

    def affine_shape(self, site: Site) -> tuple[int, ...]:
        """Return the shape in which γ and β broadcast with the input; the default is one entry per channel, axis 1."""
        return (-1, *[1] * (len(site.shapes[0]) - 2))

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``n γ + β``."""
        result = self.normalized(site, inputs)
        gain, bias = self.parameter(site, inputs, "weight"), self.parameter(site, inputs, "bias")
        result = result if gain is None else multiply(result, gain)
        return result if bias is None else result + bias

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``h = g γ``, then back through the normalization."""
        gain = self.parameter(site, inputs, "weight")
        towards = self.towards_input(site, grad if gain is None else multiply(grad, gain), inputs)
        return [towards, *[None] * (len(inputs) - 1)]

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """``∂L/∂γ = Σ g n`` and ``∂L/∂β = Σ g``, over all entries that share the parameter."""
        return self.summed(site, position, grad, self.normalized(site, inputs))

    def summed(self, site: Site, position: int, grad: Interval, values: Interval) -> FactoredGradient:
        """Return the sums of ``g n``, or of g, over all entries that share a parameter.

        Args:
            site: the call.
            position: of the parameter among the inputs.
            grad: g.
            values: n.
        """
        if position == _position(site, "weight"):
            grad = multiply(grad, values)
        shape = self.affine_shape(site)
        first = grad.lower.ndim - len(shape)
        shared = [*range(1, first), *(first + axis for axis, size in enumerate(shape) if axis and size == 1)]
        final = (grad.shape[0], *site.shapes[position])

        def summed(bound: Tensor) -> Tensor:
            return (bound.sum(dim=shared) if shared else bound).reshape(final)

        return Elementwise(grad.mapped(summed, nonnegative=grad.nonnegative))

    def parameter(self, site: Site, inputs: Sequence[Value], name: str) -> Interval | None:
        """Return an argument in the shape that broadcasts with the input; None if it is not given."""
        position = _position(site, name)
        if position is None:
            return None
        value, shape = as_interval(inputs[position]), self.affine_shape(site)
        return value.rearranged(lambda bound: bound.reshape(shape))


def _position(site: Site, name: str) -> int | None:
    """Return the position of an argument among the tensor inputs; None if it is not given."""
    given = [key for key, value in site.call.arguments.items() if isinstance(value, Reference)]
    return given.index(name) if name in given else None


class BatchNormalization(Normalization):
    """``batch_norm`` with running statistics: ``n = (x - μ) / √(v + ε)`` for fixed μ and v; exact."""

    def problem(self, site: Site) -> str | None:
        """Refuse statistics of the batch."""
        if site.call.arguments.get("training") or _position(site, "running_mean") is None:
            return f"`{name_of(site.call)}` at {site.call.source} {BATCH_STATISTICS}."
        return super().problem(site)

    def normalized(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``(x - μ) / √(v + ε)``."""
        mean, factor = self._statistics(site, inputs)
        return multiply(as_interval(inputs[0]) - mean, factor)

    def towards_input(self, site: Site, grad: Interval, inputs: Sequence[Value]) -> Interval:
        """``h / √(v + ε)``."""
        _, factor = self._statistics(site, inputs)
        return multiply(grad, factor)

    def rounded_values(self, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Interval:
        """Those in real arithmetic: their roundings are covered by `magnitudes`."""
        size = self.magnitudes(site, inputs, arithmetic) * arithmetic.relative(_ROUNDINGS)
        return self.normalized(site, inputs).widened(size)

    def magnitudes(self, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Tensor:
        """``(|x| + |μ|) / √(v + ε)``."""
        mean, factor = self._statistics(site, inputs)
        return (as_interval(inputs[0]).magnitude + mean.magnitude) * factor.upper

    def rounded_towards_input(
        self, site: Site, grad: Interval, inputs: Sequence[Value], arithmetic: Arithmetic
    ) -> tuple[Interval, Tensor]:
        """One product of a few roundings."""
        result = self.towards_input(site, grad, inputs)
        return arithmetic.outward(result, _ROUNDINGS), result.lower.new_zeros(())

    def _statistics(self, site: Site, inputs: Sequence[Value]) -> tuple[Interval, Interval]:
        """μ and ``1 / √(v + ε)``, in the shape that broadcasts with the input."""
        mean, variance = self.parameter(site, inputs, "running_mean"), self.parameter(site, inputs, "running_var")
        assert mean is not None
        assert variance is not None
        epsilon = site.number("eps")
        if variance.is_point:
            return mean, Interval.point((variance.lower + epsilon).rsqrt(), nonnegative=True)
        return mean, Interval.trusted(
            (variance.upper + epsilon).rsqrt(), (variance.lower + epsilon).rsqrt(), nonnegative=True
        )


class OwnStatistics(Normalization):
    """Normalization of groups of a sample's entries by their own mean and variance; sound, with excess width."""

    @abstractmethod
    def entries(self, site: Site) -> int:
        """Return the number N of entries of a group; groups are contiguous."""

    def normalized(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """Bounds on each entry of n, by `standardize`."""
        value = as_interval(inputs[0])
        result = standardize(self._grouped(site, value), site.number("eps")).values
        return result.rearranged(lambda bound: bound.reshape(value.shape))

    def towards_input(self, site: Site, grad: Interval, inputs: Sequence[Value]) -> Interval:
        """The Jacobian of the normalization, by `standardize_backward`."""
        standardized = standardize(self._grouped(site, as_interval(inputs[0])), site.number("eps"))
        result = standardize_backward(self._grouped(site, grad), standardized)
        return result.rearranged(lambda bound: bound.reshape(grad.shape))

    def rounded_values(self, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Interval:
        """By `rounded_standardize`."""
        value = as_interval(inputs[0])
        result = rounded_standardize(self._grouped(site, value), site.number("eps"), arithmetic).values
        return result.rearranged(lambda bound: bound.reshape(value.shape))

    def magnitudes(self, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Tensor:
        """``(|x_i| + mean |x|) / σ``."""
        value = as_interval(inputs[0])
        grouped = self._grouped(site, value)
        inverse = rounded_standardize(grouped, site.number("eps"), arithmetic).inverse
        size = grouped.magnitude + grouped.magnitude.mean(dim=-1, keepdim=True)
        return (size * inverse.upper).reshape(value.shape)

    def rounded_towards_input(
        self, site: Site, grad: Interval, inputs: Sequence[Value], arithmetic: Arithmetic
    ) -> tuple[Interval, Tensor]:
        """By `backward_error`."""
        x, h = self._grouped(site, as_interval(inputs[0])), self._grouped(site, grad)
        exact = rounded_standardize(x, site.number("eps"), Arithmetic(None, arithmetic.own))
        result = standardize_backward(h, exact)
        slack = backward_error(x, h, exact, site.number("eps"), arithmetic)
        return result.rearranged(lambda bound: bound.reshape(grad.shape)), slack.reshape(grad.shape)

    def _grouped(self, site: Site, value: Interval) -> Interval:
        """(b, ...) as (b, m, N)."""
        entries = self.entries(site)
        return value.rearranged(lambda bound: bound.reshape(bound.shape[0], -1, entries))


class LayerNormalization(OwnStatistics):
    """``layer_norm`` over the last axes."""

    def problem(self, site: Site) -> str | None:
        """Refuse a normalization over the samples."""
        if len(self.affine_shape(site)) < len(site.shapes[0]):
            return super().problem(site)
        return (
            f"`{name_of(site.call)}` at {site.call.source} normalizes over the samples, so one sample reaches all "
            "gradients. Normalize over the last axes only."
        )

    def affine_shape(self, site: Site) -> tuple[int, ...]:
        """One γ and β per entry."""
        shape = site["normalized_shape"]
        assert isinstance(shape, list | tuple)
        return tuple(int(size) for size in shape)

    def entries(self, site: Site) -> int:
        """All entries of the last axes."""
        return math.prod(self.affine_shape(site))


@dataclass(frozen=True)
class GroupNormalization(OwnStatistics):
    """``group_norm`` over groups of channels.

    Args:
        groups: name of the argument with the number of groups.
    """

    groups: str = "num_groups"

    def entries(self, site: Site) -> int:
        """Channels of a group, times positions."""
        return math.prod(site.shapes[0][1:]) // site.integer(self.groups)


class InstanceNormalization(OwnStatistics):
    """``instance_norm``: one group per channel."""

    def problem(self, site: Site) -> str | None:
        """Refuse running statistics, which mix samples."""
        if site["use_input_stats"] and _position(site, "running_mean") is None:
            return super().problem(site)
        return (
            f"`{name_of(site.call)}` at {site.call.source} keeps running statistics of the whole batch. Use "
            "`track_running_stats=False`."
        )

    def entries(self, site: Site) -> int:
        """All positions of a channel."""
        return math.prod(site.shapes[0][2:])


@dataclass(frozen=True)
class Standardized:
    """Bounds on normalized groups of entries.

    Args:
        values: n, (b, m, N).
        inverse: 1 / σ, (b, m, 1).
    """

    values: Interval
    inverse: Interval


def standardize(x: Interval, epsilon: float) -> Standardized:
    """Return bounds on n and 1 / σ over a box; exact on points.

    With ``d = x_i - m`` and V the least variance over the box, the variance is at least V and at least
    ``d² / (N - 1)``, since the other entries balance d. For d > 0, ``n_i = d / σ`` rises with d and falls with σ, so
    ``n_i <= d_U / √(max(V, d_U² / (N - 1)) + ε)``, which is below √(N - 1); for d < 0 the largest variance counts.

    Args:
        x: (b, m, N).
        epsilon: ε > 0.

    Example:
        >>> box = Interval(torch.tensor([[[0.0, -1.0]]]), torch.tensor([[[9.0, 1.0]]]))
        >>> standardize(box, 1e-5).values.upper
        tensor([[[1.0000, 1.0000]]])
    """
    if x.is_point:
        centered = deviation(x).lower
        inverse = (centered.square().mean(dim=-1, keepdim=True) + epsilon).rsqrt()
        return Standardized(Interval.point(centered * inverse), Interval.point(inverse, nonnegative=True))
    deviations = deviation(x)
    variance = variance_bounds(x)
    upper = _normalized_upper(deviations.upper, variance, epsilon)
    lower = -_normalized_upper(-deviations.lower, variance, epsilon)
    inverse_bounds = (variance.upper + epsilon).rsqrt(), (variance.lower + epsilon).rsqrt()
    return Standardized(uncrossed(lower, upper), Interval.trusted(*inverse_bounds, nonnegative=True))


def rounded_standardize(x: Interval, epsilon: float, arithmetic: Arithmetic) -> Standardized:
    """Return bounds on n and 1 / σ as a run computes them.

    With s = γ of the sums over N entries, mean and deviation are off by ``e_i = s (|x_i| + mean |x|)``, the variance by
    ``c = s mean x²`` at most, also where a kernel takes a difference of mean squares. So ``n_i`` is at most
    ``d_U / √(V - c + ε) + e_i / σ`` for d_U > 0 and the least variance V; where ``c <= ε``, V may be replaced by
    ``d_U² / (N - 1)``, since ``d / √(d² / (N - 1) - c + ε)`` rises with d then.

    Args:
        x: (b, m, N).
        epsilon: ε > 0.
        arithmetic: of the run and of the bounds.
    """
    entries = x.shape[-1]
    relative = arithmetic.relative(2 * entries + _ROUNDINGS)
    size = x.magnitude
    mean_size = size.mean(dim=-1, keepdim=True)
    error = relative * size.square().mean(dim=-1, keepdim=True)
    deviations = deviation(x)
    exact = variance_bounds(x)
    variance = Interval.trusted((exact.lower - error).clamp(min=0), exact.upper + error, nonnegative=True)
    upper = _rounded_upper(deviations.upper, variance, error, epsilon)
    lower = -_rounded_upper(-deviations.lower, variance, error, epsilon)
    inverse = Interval.trusted((variance.upper + epsilon).rsqrt(), (variance.lower + epsilon).rsqrt(), nonnegative=True)
    values = Interval.trusted(lower, upper).widened(relative * (size + mean_size) * inverse.upper)
    return Standardized(arithmetic.outward(values, _ROUNDINGS), arithmetic.outward(inverse, _ROUNDINGS))


def _rounded_upper(deviations: Tensor, variance: Interval, error: Tensor, epsilon: float) -> Tensor:
    """Return the largest ``d / √(v + ε)`` for d up to ``deviations`` and any variance that a run can compute."""
    largest = deviations * (variance.lower + epsilon).rsqrt()
    balanced = deviations.square() / max(1, deviations.shape[-1] - 1) - error
    together = deviations * (balanced.clamp(min=0) + epsilon).rsqrt()
    largest = torch.where(error <= epsilon, torch.minimum(largest, together), largest)
    return torch.where(deviations >= 0, largest, deviations * (variance.upper + epsilon).rsqrt())


def backward_error(x: Interval, h: Interval, exact: Standardized, epsilon: float, arithmetic: Arithmetic) -> Tensor:
    """Return how far a run's gradient can be from ``(h_i - mean(h) - n_i mean(h n)) / σ``, (b, m, N).

    Two parts (docs/floats.md, 4.3): the run's 1 / σ and mean are off, by a factor 1 + ρ and by μ; and its sums are off
    relatively to the magnitudes of ``Σ h``, ``Σ h x``, in the form ``h / σ + b x + c`` that kernels use.

    Args:
        x: the input.
        h: gradient with respect to n.
        exact: n and 1 / σ in real arithmetic.
        epsilon: ε.
        arithmetic: of the run and of the bounds.
    """
    entries = x.shape[-1]
    relative = arithmetic.relative(2 * entries + 2 * _ROUNDINGS)
    size, towards = x.magnitude, h.magnitude
    mean_size, mean_towards = size.mean(dim=-1, keepdim=True), towards.mean(dim=-1, keepdim=True)
    error = relative * size.square().mean(dim=-1, keepdim=True)
    least = (exact.inverse.upper.square().reciprocal() - epsilon - error).clamp(min=0) + epsilon
    inverse = torch.maximum(least.rsqrt(), exact.inverse.upper)
    off = (1 + error / least) ** 3 - 1
    n, moved = exact.values.magnitude, inverse * relative * mean_size
    aligned = (towards * n).mean(dim=-1, keepdim=True)
    of_statistics = off * (towards + mean_towards + n * aligned)
    of_mean = (1 + off) * (moved * aligned + (n + moved) * moved * mean_towards)
    products = (towards * size).mean(dim=-1, keepdim=True) + mean_size * mean_towards
    of_sums = relative * (towards + (1 + n) * mean_towards + inverse.square() * (size + mean_size) * products)
    return 2 * inverse * (of_statistics + of_mean + of_sums)


def _normalized_upper(deviations: Tensor, variance: Interval, epsilon: float) -> Tensor:
    """Largest ``d / √(v + ε)`` for d up to ``deviations`` and any variance that goes with it."""
    least = torch.maximum(variance.lower, deviations.square() / max(1, deviations.shape[-1] - 1))
    largest = deviations * (least + epsilon).rsqrt()
    return torch.where(deviations >= 0, largest, deviations * (variance.upper + epsilon).rsqrt())


def deviation(x: Interval) -> Interval:
    """Return bounds on ``x_i - mean(x)`` along the last axis; exact for each entry.

    Example:
        >>> deviation(Interval(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.0]))).upper
        tensor([0.5000, 0.5000])
    """
    low, high = x.lower.mean(dim=-1, keepdim=True), x.upper.mean(dim=-1, keepdim=True)
    if x.is_point:
        return Interval.point(x.lower - low)
    entries = x.shape[-1]
    width = (x.upper - x.lower) / entries
    return uncrossed(x.lower - high + width, x.upper - low - width)


def variance_bounds(x: Interval) -> Interval:
    """Return bounds on the variance along the last axis, (..., 1); the lower one is exact.

    It is the least mean square distance to a constant. Below: to the constant that is closest to all intervals. Above:
    to any constant, here the mean of the centers, from the far ends.

    Reference:
        Ferson et al., Exact bounds on sample variance of interval data, 2002: the largest variance is NP-hard.

    Example:
        >>> variance_bounds(Interval(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 5.0])))
        Interval(lower=tensor([1.]), upper=tensor([6.3125]))
    """
    origin = x.center.mean(dim=-1, keepdim=True)
    low, high = x.lower - origin, x.upper - origin
    nearest = _closest_constant(low, high)
    least = torch.maximum(low - nearest, nearest - high).clamp(min=0).square().mean(dim=-1, keepdim=True)
    most = torch.maximum(low.abs(), high.abs()).square().mean(dim=-1, keepdim=True)
    return uncrossed(least, most)


def _closest_constant(low: Tensor, high: Tensor) -> Tensor:
    """The c that minimizes ``Σ_k dist(c, [l_k, u_k])²``.

    Half the derivative, ``Σ (c - u_k)⁺ - Σ (l_k - c)⁺``, rises and is linear between the intervals' ends; its zero is
    interpolated.
    """
    ends = torch.cat([low, high], dim=-1).sort(dim=-1).values
    slope = _excess(ends, high) - _excess(-ends.flip(-1), -low).flip(-1)
    behind = (slope < 0).sum(dim=-1, keepdim=True).clamp(max=ends.shape[-1] - 1)
    before = (behind - 1).clamp(min=0)
    left, right = ends.gather(-1, before), ends.gather(-1, behind)
    change = slope.gather(-1, behind) - slope.gather(-1, before)
    share = torch.where(change > 0, slope.gather(-1, behind) / change.clamp(min=torch.finfo(change.dtype).tiny), 0.0)
    return right - share * (right - left)


def _excess(points: Tensor, values: Tensor) -> Tensor:
    """``Σ_k (p - v_k)⁺`` for every p, by sorting."""
    values = values.sort(dim=-1).values
    count = torch.searchsorted(values.contiguous(), points.contiguous())
    sums = torch.cat([torch.zeros_like(values[..., :1]), values.cumsum(dim=-1)], dim=-1)
    return count * points - sums.gather(-1, count)


def standardize_backward(grad: Interval, standardized: Standardized) -> Interval:
    """Return bounds on ``(h_i - mean(h) - n_i mean(h n)) / σ``, limited by its norm; exact on points.

    The Jacobian of n lies between 0 and the projection off the mean, divided by σ, so every entry of the result is at
    most ``√(1 - 1/N) ‖h - mean(h)‖ / σ``.

    Args:
        grad: h, (b, m, N), independent of n.
        standardized: n and 1 / σ.

    Example:
        >>> point = standardize(Interval.point(torch.tensor([[[1.0, 2.0, 3.0]]])), 1e-5)
        >>> standardize_backward(Interval.point(torch.ones(1, 1, 3)), point).upper
        tensor([[[0., 0., 0.]]])
    """
    n, inverse = standardized.values, standardized.inverse
    entries = n.shape[-1]
    centered = deviation(grad)
    alignment = _mean_product(grad, n)
    result = multiply(centered - multiply(n, alignment), inverse)
    if result.is_point:
        return result
    norm = torch.minimum(centered.magnitude.square().sum(-1, True), grad.magnitude.square().sum(-1, True)).sqrt()
    most = math.sqrt(1 - 1 / entries) * norm * inverse.upper
    return uncrossed(torch.maximum(result.lower, -most), torch.minimum(result.upper, most))


def _mean_product(h: Interval, n: Interval) -> Interval:
    """``mean(h n)`` for n that sums to zero and has mean square at most one, (..., 1).

    Since ``Σ n = 0``, any constant c may be taken off h. The best one is a weighted median: this is the linear program
    of the largest ``Σ h_k n_k`` over the box of n and the plane ``Σ n = 0``.
    """
    if n.is_point:
        constant = h.center.mean(dim=-1, keepdim=True)
        product = multiply(h.mapped(lambda bound: bound - constant), n)
        return product.mapped(lambda bound: bound.mean(dim=-1, keepdim=True))
    deviation_norm = deviation(h).magnitude.square().mean(dim=-1, keepdim=True).sqrt()
    upper = torch.minimum(_largest_mean_product(h, n), deviation_norm)
    lower = torch.maximum(-_largest_mean_product(-h, n), -deviation_norm)
    return uncrossed(lower, upper)


def _largest_mean_product(h: Interval, n: Interval) -> Tensor:
    """``min_c mean(max (h - c) n)``, a convex and piecewise linear function of c with one break per entry."""
    straddles = (n.lower < 0) & (n.upper > 0)
    width = (n.upper - n.lower).clamp(min=torch.finfo(n.dtype).tiny)
    crossing = (n.upper * h.upper - n.lower * h.lower) / width
    breaks = torch.where(straddles, crossing, torch.where(n.upper <= 0, h.lower, h.upper))
    order = breaks.argsort(dim=-1)
    slopes = (n.upper - n.lower).gather(-1, order).cumsum(dim=-1) - n.upper.sum(dim=-1, keepdim=True)
    best = (slopes < 0).sum(dim=-1, keepdim=True).clamp(max=breaks.shape[-1] - 1)
    constant = breaks.gather(-1, order).gather(-1, best)
    return multiply(Interval.trusted(h.lower - constant, h.upper - constant), n).upper.mean(dim=-1, keepdim=True)
