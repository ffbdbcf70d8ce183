"""Per-sample losses; their reductions over the batch belong to the objective.

Targets are inputs like any other: a regression label is an interval, a class label a set of reachable one-hot vectors.
Gradients are those of appendix C.3, each bound attained at a corner of the box of predictions and labels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from agt_lightning.arithmetic import multiply, softmax, softplus, surprisal
from agt_lightning.arithmetic.floating_point import Arithmetic, unless
from agt_lightning.capture.graph import SATURATING
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.rounding import unit_roundoff
from agt_lightning.rules.base import Rule, Site, alignment_problem, name_of
from agt_lightning.rules.elementwise import Function, evaluate
from agt_lightning.rules.roundings import Roundings, as_operand
from agt_lightning.rules.shape import no_classes
from agt_lightning.rules.softmax import WrittenLogarithm, probability_error, rounded_softmax
from agt_lightning.rules.values import Value, as_interval


@dataclass(frozen=True)
class ResidualRoundings(Roundings):
    """The roundings of a loss of the residual ``f - y``: a run computes it once, and a few products of it.

    Args:
        divisor: number that a product is divided by, after it may have underflowed.
    """

    divisor: float = 1.0

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        output = as_interval(rule.forward(site, self._residual(inputs, arithmetic)))
        return self._clear_of_underflow(arithmetic.outward(output, 8), arithmetic)

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
        gradients = rule.backward(site, grad, self._residual(inputs, arithmetic), output)
        return [
            None if each is None else self._clear_of_underflow(arithmetic.outward(each, 6), arithmetic)
            for each in gradients
        ]

    def _clear_of_underflow(self, value: Interval, arithmetic: Arithmetic) -> Interval:
        slack = arithmetic.absolute() * max(1.0, 1 / self.divisor)
        return value.widened(slack, nonnegative=value.nonnegative)

    def _residual(self, inputs: Sequence[Value], arithmetic: Arithmetic) -> list[Value]:
        """Return the residual as a prediction, for a target of zero."""
        residual = arithmetic.outward(as_operand(inputs[0], arithmetic) - as_operand(inputs[1], arithmetic))
        still = (residual.lower == 0) & (residual.upper == 0)
        residual = residual.widened(unless(still, arithmetic.least, residual.lower))
        return [residual, Interval.point(torch.zeros_like(residual.lower))]


@dataclass(frozen=True)
class ResidualLoss(Rule):
    """``ℓ(f, y) = h(f - y)`` for an even convex h: squared, absolute and Huber errors.

    Args:
        value: h, a function of tensors r; or of the site and r if it depends on settings of the call.
        slope: h', likewise, non-decreasing and equal to what autograd uses at kinks.
    """

    value: Function
    slope: Function

    def roundings(self, site: Site) -> Roundings:
        """Those of one residual; β divides its square."""
        return ResidualRoundings(site.number("beta") or 1.0 if "beta" in site.call.arguments else 1.0)

    def problem(self, site: Site) -> str | None:
        """Refuse weights, and broadcasts that pair different samples."""
        if site.call.arguments.get("weight") is not None:
            return _weighted(site)
        return alignment_problem(site)

    def _residual(self, inputs: Sequence[Value]) -> Interval:
        return as_interval(inputs[0]) - as_interval(inputs[1])

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``[h(mig r), h(mag r)]`` of the residual r."""
        residual = self._residual(inputs)
        if residual.is_point:
            return Interval.point(evaluate(self.value, site, residual.lower), nonnegative=True)
        ends = (evaluate(self.value, site, end) for end in (residual.mignitude, residual.magnitude))
        return Interval.trusted(*ends, nonnegative=True)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g h'(r)`` for the prediction, its negative for the target."""
        slope = self._residual(inputs).mapped(lambda bound: evaluate(self.slope, site, bound))
        towards = multiply(grad, slope)
        return [towards, -towards]


squared_error = ResidualLoss(value=torch.square, slope=lambda r: 2 * r)
"""``mse_loss`` before reduction: gradient 2(f - y), C.3."""

absolute_error = ResidualLoss(value=torch.abs, slope=torch.sign)
"""``l1_loss``: gradient sign(f - y)."""

huber = ResidualLoss(
    value=lambda site, r: F.huber_loss(r, torch.zeros_like(r), reduction="none", delta=site.number("delta")),
    slope=lambda site, r: r.clamp(-site.number("delta"), site.number("delta")),
)
"""``huber_loss``: gradient clamp(f - y, -δ, δ)."""

smooth_absolute_error = ResidualLoss(
    value=lambda site, r: F.smooth_l1_loss(r, torch.zeros_like(r), reduction="none", beta=site.number("beta")),
    slope=lambda site, r: (r / site.number("beta")).clamp(-1, 1) if site.number("beta") > 0 else torch.sign(r),
)
"""``smooth_l1_loss``: gradient clamp((f - y) / β, -1, 1)."""


@dataclass(frozen=True)
class CrossEntropyRoundings(Roundings):
    """The roundings of cross entropy: of ``log_softmax``, of targets and of sums over the classes."""

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        """Widen by the absolute error of the logarithms, for targets of any mass."""
        assert isinstance(rule, CrossEntropy)
        logits = as_interval(inputs[0])
        exact = as_interval(rule.forward(site, inputs))
        surprisals = surprisal(logits)
        written = WrittenLogarithm.of(site, logits, arithmetic)
        error = probability_error(logits, arithmetic) if written is None else written.error(surprisals)
        target = rule.target(site, logits, inputs[1]).magnitude + self._cancelled(rule, site, inputs[1])
        costs = surprisals.magnitude + error
        sizes = target * (error + costs * arithmetic.relative(logits.shape[1] + 8))
        slack = sizes.sum(dim=1) + arithmetic.absolute(logits.shape[1])
        return arithmetic.outward(exact.widened(slack, nonnegative=exact.nonnegative), 8)

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
        """Use probabilities and targets as a run computes them; the sum over the classes is zero up to rounding."""
        assert isinstance(rule, CrossEntropy)
        logits = as_interval(inputs[0])
        target = rule.target(site, logits, inputs[1])
        if rule.rounds_targets(site, inputs[1]):
            roundings = logits.shape[1] + 8
            target = arithmetic.outward(target, roundings)
            target = target.widened(
                arithmetic.relative(roundings) * self._cancelled(rule, site, inputs[1]), nonnegative=target.nonnegative
            )
        probabilities = rounded_softmax(logits, arithmetic)
        gradient = rule.gradient(site, grad, probabilities, target, inputs[1])
        wide = arithmetic.clear_of_underflow(arithmetic.outward(gradient, 8))
        written = WrittenLogarithm.of(site, logits, arithmetic)
        if written is not None:
            sizes = grad.magnitude.unsqueeze(1) * target.magnitude
            wide = wide.widened(written.gradient_error(sizes, probabilities.upper))
        imbalance = grad.magnitude.unsqueeze(1) * self._imbalance(logits, probabilities, target, arithmetic)
        return [Interval.trusted(wide.lower, wide.upper, balanced=True, imbalance=imbalance), None]

    def _cancelled(self, rule: CrossEntropy, site: Site, labels: Value) -> float:
        """Return the size of what smoothing adds to a target and can cancel: zero unless targets can be negative."""
        smoothing = site.number("label_smoothing")
        return 0.0 if smoothing == 0.0 or rule.nonnegative_targets(site, labels) else smoothing

    def _imbalance(self, logits: Interval, probabilities: Interval, target: Interval, arithmetic: Arithmetic) -> Tensor:
        """Bound what ``p Σ y - y`` adds up to in a run: the errors of p, which are absolute, and of the products."""
        mass = target.magnitude.sum(dim=1, keepdim=True).clamp(min=1.0)
        sizes = probabilities.upper.sum(dim=1, keepdim=True) * mass
        relative = 2 * probability_error(logits, arithmetic) + arithmetic.relative(2 * logits.shape[1] + 16)
        rest = arithmetic.relative(logits.shape[1] + 16) * mass + arithmetic.absolute(logits.shape[1])
        return sizes * relative + rest


class CrossEntropy(Rule):
    """``cross_entropy_loss`` with class labels or probabilities on axis 1: gradient p - y."""

    def roundings(self, site: Site) -> Roundings:
        """Those of probabilities and targets."""
        return CrossEntropyRoundings()

    def problem(self, site: Site) -> str | None:
        """Refuse class weights and an ignored class, whose mean divides by a number that depends on every label."""
        if site["weight"] is not None:
            return _weighted(site)
        if 0 <= site.integer("ignore_index") < (site.shapes[0][1:2] or (0,))[0]:
            return (
                f"`{name_of(site.call)}` at {site.call.source} ignores class {site['ignore_index']}: the mean then "
                "divides by the number of other labels, so one changed label reaches all gradients. With fixed labels "
                "(`nu=0`) give the loss the batch entry itself, without smoothing; otherwise leave `ignore_index` out."
            )
        if not all(site.samples) or len(site.shapes[0]) < 2:
            return f"`{name_of(site.call)}` at {site.call.source} needs predictions of shape (batch, classes, ...)."
        return _fixed_target(site)

    def rounds_targets(self, site: Site, target: Value) -> bool:
        """Return whether targets are numbers, or smoothed; labels are zero and one."""
        return not isinstance(_as_labels(site, target), ClassLabels) or site.number("label_smoothing") != 0.0

    def nonnegative_targets(self, site: Site, target: Value) -> bool:
        """Return whether targets are classes, or numbers of which it is known that none is negative."""
        labels = _as_labels(site, target)
        return isinstance(labels, ClassLabels) or as_interval(labels).nonnegative

    def target(self, site: Site, logits: Interval, target: Value) -> Interval:
        """Return bounds on y, in the shape of the logits."""
        target = _as_labels(site, target)
        classes = logits.shape[1]
        if isinstance(target, ClassLabels):
            bounds = target.one_hot(classes, logits.dtype)
            bounds = bounds.rearranged(lambda bound: bound.movedim(-1, 1))
        else:
            bounds = as_interval(target)
        smoothing = site.number("label_smoothing")
        if smoothing == 0.0:
            return bounds
        smaller, shift = bounds.scaled(1 - smoothing), smoothing / classes
        return smaller.mapped(lambda bound: bound + shift, nonnegative=bounds.nonnegative)

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``Σ_k y_k (-log p_k)``, and for class labels the extremes over the reachable ones."""
        logits = as_interval(inputs[0])
        cost = surprisal(logits)
        target = _as_labels(site, inputs[1])
        if isinstance(target, ClassLabels) and site.number("label_smoothing") == 0.0:
            reachable = target.reachable(logits.shape[1]).movedim(-1, 1)
            lower = torch.where(reachable, cost.lower, torch.inf).amin(dim=1)
            upper = torch.where(reachable, cost.upper, -torch.inf).amax(dim=1)
            return Interval.trusted(lower, upper, nonnegative=True)
        return multiply(self.target(site, logits, target), cost).mapped(lambda bound: bound.sum(dim=1))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g (p - y)``; for probabilities as targets ``g (p Σ_k y_k - y)``. Both add up to zero over the classes."""
        logits = as_interval(inputs[0])
        gradient = self.gradient(site, grad, softmax(logits), self.target(site, logits, inputs[1]), inputs[1])
        return [Interval.trusted(gradient.lower, gradient.upper, balanced=True), None]

    def gradient(
        self, site: Site, grad: Interval, probabilities: Interval, target: Interval, labels: Value
    ) -> Interval:
        """Return bounds on the gradient of the logits.

        Args:
            site: the call.
            grad: of the losses.
            probabilities: p.
            target: y.
            labels: the target as the call receives it.
        """
        if not isinstance(_as_labels(site, labels), ClassLabels):
            mass = target.mapped(lambda bound: bound.sum(dim=1, keepdim=True), nonnegative=target.nonnegative)
            probabilities = multiply(probabilities, mass)
        towards = grad.rearranged(lambda bound: bound.unsqueeze(1))
        return multiply(towards, probabilities - target)


@dataclass(frozen=True)
class BinaryCrossEntropyRoundings(Roundings):
    """The roundings of binary cross entropy, of logits or of a sigmoid's result.

    Kernels and autograd compute the slope by differences from one, so its error is absolute: relative to
    ``1 + |y| + w (1 + |y|)``. A sigmoid that is rounded to one makes `binary_cross_entropy` clamp its logarithm at -100
    and its slope fade, from a logit on that depends on the type.
    """

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        assert isinstance(rule, BinaryCrossEntropy)
        logits = as_interval(inputs[0])
        sizes = self._sizes(rule, site, inputs)
        output = as_interval(rule.forward(site, inputs))
        error = arithmetic.relative(_LOSS_ROUNDINGS) * sizes * (1 + logits.magnitude)
        if not site.call.arguments.get(SATURATING):
            return output.widened(error + arithmetic.absolute())
        place = saturation(arithmetic)
        # A difference from one is off by u, its logarithm by u / (1 - p).
        error = error * (1 + logits.magnitude.clamp(max=place).exp())
        clamped = torch.where(logits.magnitude > place, sizes * _CLAMPED, 0.0)
        lower = torch.where(logits.magnitude > place, output.lower.clamp(max=0), output.lower)
        return Interval.trusted(lower - error, torch.maximum(output.upper, clamped) + error)

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
        assert isinstance(rule, BinaryCrossEntropy)
        logits = as_interval(inputs[0])
        slope = rule.slope(site, inputs)
        slope = slope.widened(arithmetic.relative(_LOSS_ROUNDINGS) * self._sizes(rule, site, inputs))
        if site.call.arguments.get(SATURATING):
            slope = _faded(slope, logits, saturation(arithmetic))
        gradient = arithmetic.clear_of_underflow(arithmetic.outward(multiply(grad, slope), 4))
        return [gradient, *[None] * (len(inputs) - 1)]

    def _sizes(self, rule: BinaryCrossEntropy, site: Site, inputs: Sequence[Value]) -> Tensor:
        """Return ``1 + |y| + w (1 + |y|)``."""
        target = 1 + as_interval(inputs[1]).magnitude
        return target * (1 + rule.positive_weight(site, inputs).magnitude)


class BinaryCrossEntropy(Rule):
    """``binary_cross_entropy_with_logits``: gradient σ(z)(1 + (w - 1) y) - w y with positive weight w (1 if absent).

    It is monotone in z for every y and linear in y for every z, so the extremes are at corners.
    """

    def roundings(self, site: Site) -> Roundings:
        """Those of all forms of the loss."""
        return BinaryCrossEntropyRoundings()

    def problem(self, site: Site) -> str | None:
        """Refuse sample weights, misaligned samples, targets that are trained and positive weights from the batch."""
        if site["weight"] is not None:
            return _weighted(site)
        if any(site.samples[2:]) or any(site.trainable[2:]):
            return (
                f"`{name_of(site.call)}` at {site.call.source} has a `pos_weight` that depends on samples or on "
                "trainable parameters. Use one that is fixed, or write the loss by `logsigmoid` and products."
            )
        return alignment_problem(site) or _fixed_target(site)

    def positive_weight(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """Return bounds on w."""
        if site["pos_weight"] is None:
            like = as_interval(inputs[0]).lower
            return Interval.point(torch.ones((), dtype=like.dtype, device=like.device))
        return as_interval(inputs[2])

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``w y softplus(-z) + (1 - y) softplus(z)``, each summand on its own: an enclosure, exact for points."""
        logits, target = as_interval(inputs[0]), as_interval(inputs[1])
        weight = self.positive_weight(site, inputs)
        positive = (-logits).mapped(softplus, nonnegative=True)
        negative = logits.mapped(softplus, nonnegative=True)
        ones = Interval.point(torch.ones_like(target.lower))
        return multiply(multiply(weight, target), positive) + multiply(ones - target, negative)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g`` times the slope."""
        return [multiply(grad, self.slope(site, inputs)), *[None] * (len(inputs) - 1)]

    def slope(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """Return bounds on ``σ(z)(1 + (w - 1) y) - w y``: at corners of prediction, label and weight."""
        logits, target = as_interval(inputs[0]), as_interval(inputs[1])
        weight = self.positive_weight(site, inputs)

        def at(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
            return torch.sigmoid(z) * (1 + (w - 1) * y) - w * y

        if logits.is_point and target.is_point and weight.is_point:
            bounds = Interval.point(at(logits.lower, target.lower, weight.lower))
        else:
            ends = [
                (value.lower,) if value.is_point else (value.lower, value.upper) for value in (logits, target, weight)
            ]
            corners = torch.stack(torch.broadcast_tensors(*(at(*corner) for corner in itertools.product(*ends))))
            bounds = Interval.trusted(corners.amin(dim=0), corners.amax(dim=0))
        return _faded(bounds, logits, _FADING) if site.call.arguments.get(SATURATING) else bounds


_FADING = math.log(1e12) - 1e-3
"""`binary_cross_entropy` divides by max(p (1 - p), 1e-12), which is p (1 - p) for logits below this size."""


_CLAMPED = 100.0
"""The largest value of minus a logarithm in `binary_cross_entropy`."""

_LOSS_ROUNDINGS = 24
"""Roundings of a slope of binary cross entropy in any of its forms."""


def saturation(arithmetic: Arithmetic) -> float:
    """Return the logit above which a sigmoid can be rounded to one; it is right to a few units in the last place.

    Example:
        >>> 13 < saturation(Arithmetic(torch.float32, torch.float64)) < 17
        True
    """
    unit = unit_roundoff(arithmetic.own if arithmetic.run is None else arithmetic.run)
    return min(_FADING, -math.log(16 * unit))


def _faded(slope: Interval, logits: Interval, place: float) -> Interval:
    """For larger logits torch's gradient is the slope times p (1 - p) / 1e-12: anything between zero and the slope."""
    large = logits.magnitude > place
    lower = torch.where(large, slope.lower.clamp(max=0), slope.lower)
    upper = torch.where(large, slope.upper.clamp(min=0), slope.upper)
    return Interval.point(lower) if slope.is_point and torch.equal(lower, upper) else Interval.trusted(lower, upper)


_NONE_IGNORED = -100
"""The default of ``ignore_index``."""


def _as_labels(site: Site, target: Value) -> Value:
    """Return integers as class labels, none of which an adversary can turn into the ignored one."""
    if isinstance(target, Tensor) and not target.is_floating_point():
        return ClassLabels(target)
    if isinstance(target, Interval) and len(site.shapes[1]) < len(site.shapes[0]):
        raise UncertifiableError([no_classes(site)])
    ignored = site.integer("ignore_index")
    if isinstance(target, ClassLabels) and target.flippable:
        any_class = target.targets is None and ignored != _NONE_IGNORED
        if any_class or target.targets is not None and ignored in target.targets:
            raise UncertifiableError(
                [
                    f"`{name_of(site.call)}` at {site.call.source} ignores label {ignored}, which a flip can make of "
                    "any label: the mean then divides by the number of other labels, so one label reaches all "
                    "gradients. Leave `ignore_index` out, or exclude that class by `target_classes`."
                ]
            )
    return target


def _weighted(site: Site) -> str:
    return (
        f"`{name_of(site.call)}` at {site.call.source} has weights by class, which have bounds for logits of shape "
        "(batch, classes) and class labels without smoothing alone. Leave `weight` or `label_smoothing` out, or put "
        "each sample's weight into the data set and take `(w * F.cross_entropy(z, y, reduction='none')).mean()`."
    )


def _fixed_target(site: Site) -> str | None:
    if not site.trainable[1]:
        return None
    return (
        f"`{name_of(site.call)}` at {site.call.source} has a target that depends on trainable parameters. Use "
        "`.detach()` on it."
    )
