"""Softmax and its logarithm as layers, over any axis but the samples'."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import multiply, softmax, surprisal
from agt_lightning.arithmetic.floating_point import SMALLEST_WEIGHT, Arithmetic
from agt_lightning.arithmetic.order import intersection
from agt_lightning.capture.graph import UNDERFLOWING
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.roundings import Roundings
from agt_lightning.rules.values import Value, as_interval


class _OverAxis(Rule):
    """The axis of the classes, which the arithmetic expects second."""

    def takes_constants(self, site: Site) -> bool:
        """Accept calls on constants alone, over any axes."""
        return True

    def roundings(self, site: Site) -> Roundings:
        """Those of all kernels."""
        return SoftmaxRoundings()

    @abstractmethod
    def rounded(self, site: Site, logits: Interval, arithmetic: Arithmetic) -> Interval:
        """Return bounds on the result as a run computes it, classes on axis 1."""

    def problem(self, site: Site) -> str | None:
        """Refuse the samples' axis."""
        rank = len(site.shapes[0])
        if rank > 1 and site.integer("dim") % rank != 0:
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} runs over axis 0, the samples', so that each sample meets "
            "all others. Use the axis of the classes, for example `dim=1`."
        )

    def to_front(self, site: Site, value: Interval) -> Interval:
        """Move the axis of the classes to axis 1; a value without samples is one sample."""
        dim = self._axis(site)
        return _with_samples(site, value).rearranged(lambda bound: bound.movedim(dim, 1))

    def back(self, site: Site, value: Interval) -> Interval:
        """Move axis 1 to the place of the classes."""
        dim = self._axis(site)
        moved = value.rearranged(lambda bound: bound.movedim(1, dim))
        return moved if site.has_samples else moved[0]

    def _axis(self, site: Site) -> int:
        """Return the axis of the classes behind that of samples."""
        return site.integer("dim") % len(site.shapes[0]) + (0 if site.has_samples else 1)


def _with_samples(site: Site, value: Interval) -> Interval:
    """Return a value with a sample axis in front: that of buffers or constants, for which calls are bounded too."""
    return value if site.has_samples else value[None]


_ROUNDINGS = 24
"""Roundings of one probability besides the sum: differences, exponential, logarithm, quotient."""


def probability_error(logits: Interval, arithmetic: Arithmetic) -> Tensor:
    """Return how far probabilities in floating point can be from the softmax of the logits, relatively.

    A kernel takes the difference of each logit to the largest one, right up to u of that difference, and its
    exponential, whose relative error is the absolute one of its argument; by ``log_softmax`` it takes the logarithm of
    the sum as well.

    Args:
        logits: classes on axis 1.
        arithmetic: of the run and of the bounds.

    Returns:
        One number for each sample and position, with axis 1 of size one.

    Example:
        >>> logits = Interval.point(torch.tensor([[0.0, 10.0]], dtype=torch.float64))
        >>> bool(1e-6 < probability_error(logits, Arithmetic(torch.float32, torch.float64)) < 1e-4)
        True
    """
    classes = logits.shape[1]
    spread = logits.upper.amax(dim=1, keepdim=True) - logits.lower.amin(dim=1, keepdim=True)
    return arithmetic.relative(classes + _ROUNDINGS) * (1 + spread + math.log(classes))


def probability_errors(logits: Interval, largest: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Return the absolute error of each probability in floating point, classes on axis 1.

    The relative one of ``p_k`` is that of its own exponential, whose argument is off by u of the difference of its
    logit to the largest one, and that of the sum of all, in which each exponential counts by its probability. So logits
    that a mask puts far below the others add nothing: their probabilities vanish faster than their errors grow.

    Args:
        logits: classes on axis 1.
        largest: upper bounds on the probabilities.
        arithmetic: of the run and of the bounds.

    Example:
        >>> logits = Interval.point(torch.tensor([[0.0, -1e9]], dtype=torch.float64))
        >>> single = Arithmetic(torch.float32, torch.float64)
        >>> bool(probability_errors(logits, softmax(logits).upper, single).max() < 1e-4)
        True
    """
    classes = logits.shape[1]
    below = logits.upper.amax(dim=1, keepdim=True) - logits.lower
    shares = torch.where(largest > 0, largest * below, 0.0)  # what underflows is far below all errors
    of_sum = torch.minimum(shares.sum(dim=1, keepdim=True), below.amax(dim=1, keepdim=True))
    return arithmetic.relative(classes + _ROUNDINGS) * (shares + largest * (1 + of_sum + math.log(classes)))


def rounded_softmax(logits: Interval, arithmetic: Arithmetic) -> Interval:
    """Return bounds on probabilities as a run computes them, classes on axis 1."""
    exact = softmax(logits)
    error = probability_errors(logits, exact.upper, arithmetic)
    wide = exact.widened(error + arithmetic.absolute(logits.shape[1]), nonnegative=True)
    # However far apart logits are, no exponential exceeds the sum of all, but for the roundings of both.
    largest = 1 + arithmetic.relative(logits.shape[1] + _ROUNDINGS)
    return Interval.trusted(wide.lower, wide.upper.clamp(max=largest), nonnegative=True)


class LogSumExp(Rule):
    """``logsumexp`` over axes of each sample; exact: each logit moves it in one direction, by its probability."""

    def takes_constants(self, site: Site) -> bool:
        """Accept calls on constants alone, over any axes."""
        return True

    def roundings(self, site: Site) -> Roundings:
        """Those of probabilities."""
        return LogSumExpRoundings()

    def problem(self, site: Site) -> str | None:
        """Refuse the samples' axis."""
        if 0 not in self._dims(site):
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} runs over axis 0, the samples', so that each sample meets "
            "all others. Use the axis of the classes, for example `dim=1`."
        )

    def _dims(self, site: Site) -> list[int]:
        rank, dims = len(site.shapes[0]), site["dim"]
        assert isinstance(dims, list | tuple)
        return [int(dim) % rank for dim in dims] or list(range(rank))

    def to_front(self, site: Site, value: Interval) -> Interval:
        """Return the logits with all classes on axis 1, and the other axes behind it."""
        value = _with_samples(site, value)
        dims = [dim + (0 if site.has_samples else 1) for dim in self._dims(site)]
        order = [0, *dims, *(axis for axis in range(1, len(value.shape)) if axis not in dims)]
        return value.rearranged(lambda bound: bound.permute(order).flatten(1, len(dims)))

    def back(self, site: Site, value: Interval, shape: torch.Size) -> Interval:
        """Undo `to_front` for a value of the logits' shape."""
        dims = self._dims(site)
        order = [0, *dims, *(axis for axis in range(1, len(shape)) if axis not in dims)]
        inverse = [order.index(axis) for axis in range(len(shape))]
        return value.rearranged(lambda bound: bound.reshape([shape[axis] for axis in order]).permute(inverse))

    def over_classes(self, site: Site, value: Interval) -> Interval:
        """Return a value of the result's shape with an axis of size one for the classes, to meet `to_front`."""
        rest = [size for axis, size in enumerate(site.shapes[0]) if axis and axis not in self._dims(site)]
        return value.rearranged(lambda bound: bound.reshape(bound.shape[0], 1, *rest))

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """The value at all lower and at all upper bounds."""
        dims, keepdim = self._dims(site), bool(site["keepdim"])
        return as_interval(inputs[0]).mapped(lambda bound: bound.logsumexp(dims, keepdim=keepdim))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``p_k g``."""
        value = as_interval(inputs[0])
        towards = multiply(softmax(self.to_front(site, value)), self.over_classes(site, grad))
        return [self.back(site, towards, value.shape)]


@dataclass(frozen=True)
class LogSumExpRoundings(Roundings):
    """The logarithm is off absolutely by the relative error of probabilities, and by the rounding of its own sum."""

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Interval:
        assert isinstance(rule, LogSumExp)
        exact, logits = as_interval(rule.forward(site, inputs)), rule.to_front(site, as_interval(inputs[0]))
        error = probability_error(logits, arithmetic).reshape(exact.shape)
        return arithmetic.outward(exact.widened(error), 4)

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
        """A run takes ``g exp(z_k - s)``, whose argument is off by the errors of s and of the difference."""
        assert isinstance(rule, LogSumExp)
        value = as_interval(inputs[0])
        logits = rule.to_front(site, value)
        size = 1 + float(as_interval(output).magnitude.max()) + float(value.magnitude.max())
        error = (3 * probability_error(logits, arithmetic) + arithmetic.relative(16) * size).clamp(max=1.5)
        p = softmax(logits)
        wide = p.widened(3 * error * p.upper + arithmetic.absolute(4), nonnegative=True)
        towards = arithmetic.outward(multiply(wide, rule.over_classes(site, grad)), 4)
        return [rule.back(site, arithmetic.clear_of_underflow(towards, 4), value.shape)]


@dataclass(frozen=True)
class SoftmaxRoundings(Roundings):
    """The roundings of ``softmax`` and ``log_softmax`` (docs/floats.md, section 4.2)."""

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Interval:
        assert isinstance(rule, _OverAxis)
        return rule.back(site, rule.rounded(site, rule.to_front(site, as_interval(inputs[0])), arithmetic))

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
        """Widen by the errors of p and of the sum over the classes, which is relative to ``|g_k| + p Σ |g_j|``."""
        assert isinstance(rule, _OverAxis)
        logits, towards = rule.to_front(site, as_interval(inputs[0])), rule.to_front(site, grad)
        (exact,) = rule.backward(site, grad, inputs, output)
        assert exact is not None
        p, size = softmax(logits).upper, towards.magnitude
        if isinstance(rule, Softmax):
            error = probability_errors(logits, p, arithmetic).clamp(max=1.5)
            total = (p * size).sum(dim=1, keepdim=True)
            slack = 3 * (error * (size + total) + (p + error) * (error * size).sum(dim=1, keepdim=True))
        else:
            error = (p * probability_error(logits, arithmetic)).clamp(max=1.5)
            slack = 3 * error * (size + size.sum(dim=1, keepdim=True))
        slack = slack + arithmetic.relative(4) * size
        written = WrittenLogarithm.of(site, logits, arithmetic)
        if written is not None:
            slack = slack + written.gradient_error(size, p)
        wide = rule.to_front(site, exact).widened(slack + arithmetic.absolute(logits.shape[1]))
        return [rule.back(site, wide)]


@dataclass(frozen=True)
class WrittenLogarithm:
    """A ``log_softmax`` that the code computes as ``log(softmax(z))``: in floating point, p can be zero.

    Then the logarithm is infinite and its derivative NaN. While every p is a normal number, ``log p`` is off by the
    relative error of p and by the logarithm's own roundings; backward, a gradient is divided by p and multiplied with
    it again, which are a few roundings of its own size.

    Args:
        logits: classes on axis 1.
        arithmetic: of the run and of the bounds.

    Reference:
        docs/floats.md, eq. (4.1) and (4.2).
    """

    logits: Interval
    arithmetic: Arithmetic

    @classmethod
    def of(cls, site: Site, logits: Interval, arithmetic: Arithmetic) -> WrittenLogarithm | None:
        """Return None if the call is a ``log_softmax`` in the code as well, or if runs are in real arithmetic."""
        written = site.call.arguments.get(UNDERFLOWING) and arithmetic.run is not None
        return cls(logits, arithmetic) if written else None

    def error(self, surprisals: Interval) -> Tensor:
        """Return the absolute error of each logarithm.

        Args:
            surprisals: bounds on ``-log p``.

        Raises:
            UncertifiableError: if some p of a run can be no normal number.
        """
        error = self._require_normal(surprisals)
        # |log(1 + e)| <= 2 |e| for |e| <= 1/2.
        return 2 * error + self.arithmetic.relative(_LOGARITHM) * (1 + surprisals.upper)

    def gradient_error(self, sizes: Tensor, probabilities: Tensor) -> Tensor:
        """Return the absolute error of each logit's gradient, besides that of p.

        Args:
            sizes: upper bounds on the gradients that reach the logarithms, of the logits' shape.
            probabilities: upper bounds on p.

        Raises:
            UncertifiableError: if some p can be no normal number, or a gradient divided by p overflow, for a sample of
                a weight up to 2^40.
        """
        surprisals = surprisal(self.logits)
        self._require_normal(surprisals)
        room = math.log(self._numbers.max) + math.log(SMALLEST_WEIGHT) - _MARGIN
        if not bool((sizes.log() + surprisals.upper <= room).all()):  # NaN included
            raise UncertifiableError([self._problem(room)])
        total = sizes.sum(dim=1, keepdim=True)
        roundings = self.logits.shape[1] + _LOGARITHM
        return self.arithmetic.relative(roundings) * (sizes + probabilities * total)

    def _require_normal(self, surprisals: Interval) -> Tensor:
        """Return the relative error of p."""
        error = probability_error(self.logits, self.arithmetic)
        largest = -math.log(self._numbers.tiny) - _MARGIN
        if not bool((surprisals.upper <= largest).all() & (error <= 0.5).all()):  # NaN included
            raise UncertifiableError([self._problem(largest)])
        return error

    @property
    def _numbers(self) -> torch.finfo:
        assert self.arithmetic.run is not None
        return torch.finfo(self.arithmetic.run)

    def _problem(self, limit: float) -> str:
        kind = str(self.arithmetic.run).removeprefix("torch.")
        return (
            f"The code takes the logarithm of a softmax, and a probability can be zero in {kind} or too close to it: "
            f"logits can be more than {limit:.0f} apart, where a run gets infinity or NaN. Use `F.log_softmax`, or "
            "`F.cross_entropy` of the logits, which have no such limit."
        )


_MARGIN = 1.0
"""Room, in units of log p, for the error of p and of the bounds on it."""

_LOGARITHM = 16
"""Roundings of a logarithm, relative to its size and to one, or of a quotient, a product and a difference."""


class Softmax(_OverAxis):
    """``softmax``; exact forward, an enclosure backward."""

    def rounded(self, site: Site, logits: Interval, arithmetic: Arithmetic) -> Interval:
        """Probabilities as a run computes them."""
        return rounded_softmax(logits, arithmetic)

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``p_k``, each at two corners of the box of logits."""
        return self.back(site, softmax(self.to_front(site, as_interval(inputs[0]))))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``p_k Σ_j p_j (g_k - g_j)``, see `softmax_gradient`."""
        probabilities = softmax(self.to_front(site, as_interval(inputs[0])))
        return [self.back(site, softmax_gradient(probabilities, self.to_front(site, grad)))]


class LogSoftmax(_OverAxis):
    """``log_softmax``; each bound is attained. A loss that follows it over axis 1 is fused with it."""

    def rounded(self, site: Site, logits: Interval, arithmetic: Arithmetic) -> Interval:
        """Logarithms as a run computes them: their absolute error is the relative one of the probabilities."""
        exact = surprisal(logits)
        written = WrittenLogarithm.of(site, logits, arithmetic)
        error = probability_error(logits, arithmetic) if written is None else written.error(exact)
        return (-exact).widened(error)

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``log p_k``, each at two corners of the box of logits."""
        return self.back(site, -surprisal(self.to_front(site, as_interval(inputs[0]))))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g_k - p_k Σ_j g_j``, see `log_softmax_gradient`."""
        probabilities = softmax(self.to_front(site, as_interval(inputs[0])))
        return [self.back(site, log_softmax_gradient(probabilities, self.to_front(site, grad)))]


def log_softmax_gradient(probabilities: Interval, grad: Interval) -> Interval:
    """Return bounds on ``g_k (1 - p_k) - p_k Σ_{j≠k} g_j``, classes on axis 1; exact.

    Both coefficients are known in sign, so for each p_k the extremes are at the ends of all g; what remains is linear
    in p_k, so its extremes are at the ends of p_k.
    """
    ends = [probabilities.lower, probabilities.upper]
    if probabilities.is_point and grad.is_point:
        return Interval.point(grad.lower - probabilities.lower * grad.lower.sum(dim=1, keepdim=True))
    lowest = [grad.lower * (1 - p) - p * _sum_of_others(grad.upper) for p in ends]
    highest = [grad.upper * (1 - p) - p * _sum_of_others(grad.lower) for p in ends]
    return Interval.trusted(torch.minimum(*lowest), torch.maximum(*highest))


def softmax_gradient(probabilities: Interval, grad: Interval) -> Interval:
    """Return bounds on ``p_k Σ_j p_j (g_k - g_j)``, classes on axis 1; the intersection of two enclosures.

    With ``s_k = p_k (1 - p_k)``, which is exact over p_k, these are

        s_k (g_k - [min_{j≠k} g_j, max_{j≠k} g_j])   and   s_k g_k - p_k Σ_{j≠k} p_j g_j:

    the mean of the others under the remaining weights lies between their extremes, which is the tighter one for wide
    probabilities, and the second one is exact for points. Neither is attained in general, since all p_j depend on the
    same logits.
    """
    if probabilities.is_point and grad.is_point:
        p, g = probabilities.lower, grad.lower
        return Interval.point(p * (g - (p * g).sum(dim=1, keepdim=True)))
    variance = _bernoulli_variance(probabilities)
    products = multiply(probabilities, grad)
    others = Interval.trusted(_sum_of_others(products.lower), _sum_of_others(products.upper))
    apart = multiply(variance, grad) - multiply(probabilities, others)
    if grad.shape[1] == 1:
        return apart
    hull = Interval.trusted(-_largest_of_others(-grad.lower), _largest_of_others(grad.upper))
    return intersection(apart, multiply(variance, grad - hull))


def _bernoulli_variance(p: Interval) -> Interval:
    """``p (1 - p)``, largest at one half."""
    at_lower, at_upper = p.lower * (1 - p.lower), p.upper * (1 - p.upper)
    half = (p.lower <= 0.5) & (p.upper >= 0.5)
    upper = torch.where(half, 0.25, torch.maximum(at_lower, at_upper))
    return Interval.trusted(torch.minimum(at_lower, at_upper).clamp(min=0), upper, nonnegative=True)


def _sum_of_others(values: Tensor) -> Tensor:
    """``Σ_{j≠k} v_j`` along axis 1; sums of both sides, since a difference from the total would cancel."""
    nothing = torch.zeros_like(values[:, :1])
    before = torch.cat([nothing, values[:, :-1].cumsum(dim=1)], dim=1)
    after = torch.cat([values[:, 1:].flip(1).cumsum(dim=1).flip(1), nothing], dim=1)
    return before + after


def _largest_of_others(values: Tensor) -> Tensor:
    """``max_{j≠k} v_j`` along axis 1, for at least two entries."""
    best = values.topk(2, dim=1)
    classes = torch.arange(values.shape[1], device=values.device).reshape(-1, *[1] * (values.ndim - 2))
    return torch.where(best.indices[:, :1] == classes, best.values[:, 1:], best.values[:, :1])
