"""Losses at the end of a head: gradient and curvature in the outputs, and their suprema over bounded outputs.

Each loss ``ℓ(f, y)`` is convex in the outputs f of one sample, (K,). Changes of its gradient, and its curvature, are
bounded over the outputs in an `OutputBounds` and not over all outputs: a global constant, such as 1/4 for the logistic
loss, would make few large steps look unstable.

Sums and products of positive numbers are rounded by a few units of the last place, which the domain covers for all of
them together; differences and elementary functions are rounded outward here.

Reference:
    docs/theory.md, section 10.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from agt_lightning.arithmetic import euclidean_norm, softmax
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.rounding import accumulated_roundoff
from agt_lightning.rules.loss import saturation

Target = Interval | ClassLabels
"""Targets of a batch: numbers as a point interval (b, ...), or class labels (b,)."""

_SOFTMAX_LIPSCHITZ = 0.5
"""Largest eigenvalue of ``diag(p) - p pᵀ``: 1/2, at two classes of equal probability."""

_ELEMENTARY = 32
"""Roundings that an exponential or a sigmoid may take; libraries state one to four units in the last place."""

_FEW = 16
"""Roundings of a handful of sums and products."""

_UPWARD = 1 + 2.0**-40
"""Above the rounding of a few of Python's own numbers."""


LogitLimit = Callable[[Arithmetic, int], float]
"""Largest size of outputs at which a loss that is written by hand is still computed as it is in real arithmetic.

Its arguments are the roundings of runs and the number of outputs. Beyond it a run divides by a rounded zero, overflows,
or uses another formula.
"""


def sigmoid_limit(arithmetic: Arithmetic, outputs: int) -> float:
    """Return where ``1 - σ(f)`` is still no rounded zero, and `binary_cross_entropy` is not cut off.

    Example:
        >>> 13 < sigmoid_limit(Arithmetic(torch.float32, torch.float64), 1) < 17
        True
    """
    return saturation(arithmetic)


def softplus_limit(arithmetic: Arithmetic, outputs: int) -> float:
    """Return where `softplus` with its default threshold of 20 is not yet the identity.

    Example:
        >>> softplus_limit(Arithmetic(torch.float32, torch.float64), 1) < 20
        True
    """
    return 19.99


def exponential_limit(arithmetic: Arithmetic, outputs: int) -> float:
    """Return where exponentials neither underflow nor, added up over the outputs, overflow.

    Example:
        >>> 84 < exponential_limit(Arithmetic(torch.float32, torch.float64), 2) < 86
        True
    """
    numbers = torch.finfo(arithmetic.own if arithmetic.run is None else arithmetic.run)
    return min(-math.log(numbers.tiny), math.log(numbers.max)) - math.log(outputs) - 2


def softmax_limit(arithmetic: Arithmetic, outputs: int) -> float:
    """Return where no probability underflows: outputs then differ by at most twice their size.

    Example:
        >>> 42 < softmax_limit(Arithmetic(torch.float32, torch.float64), 2) < 43
        True
    """
    return exponential_limit(arithmetic, outputs) / 2


@dataclass(frozen=True)
class OutputBounds:
    """Bounds on the outputs of each sample: a Euclidean ball and a box, both around the nominal outputs.

    Args:
        center: nominal outputs f, (b, K).
        radius: of the ball, (b,).
        box: bounds on the outputs, (b, K); contains ``center``.
    """

    center: Tensor
    radius: Tensor
    box: Interval

    @classmethod
    def around(cls, center: Tensor, radius: Tensor, box: Interval | None = None) -> OutputBounds:
        """Return the ball, and its enclosing box intersected with ``box``; each is cut to the other.

        Args:
            center: nominal outputs, (b, K).
            radius: of the ball, (b,).
            box: further bounds on the outputs, (b, K); None if there are none.
        """
        lower, upper = center - radius[:, None], center + radius[:, None]
        if box is None:
            return cls(center, radius, Interval.trusted(lower, upper))
        lower, upper = torch.maximum(lower, box.lower), torch.minimum(upper, box.upper)
        # Rounding must not push the box off the center that both contain.
        tight = Interval.trusted(torch.minimum(lower, center), torch.maximum(upper, center))
        farthest = torch.maximum(tight.upper - center, center - tight.lower)
        return cls(center, torch.minimum(radius, euclidean_norm(farthest, dim=1)), tight)

    @cached_property
    def probabilities(self) -> Interval:
        """Bounds on the softmax over the box, (b, K), with its rounding."""
        exact, error = softmax(self.box), self.softmax_roundoff[:, None]
        lower, upper = exact.lower * (1 - error).clamp(min=0), (exact.upper * (1 + error)).clamp(max=1)
        return Interval.trusted(lower, upper, nonnegative=True)

    @cached_property
    def softmax_roundoff(self) -> Tensor:
        """Relative rounding of a probability, (b,): a rounded exponent changes it by as much as the exponent."""
        sums = accumulated_roundoff(self.center.shape[1] + 2 * _ELEMENTARY, self.center.dtype)
        return sums + accumulated_roundoff(_FEW, self.center.dtype) * self.box.magnitude.amax(dim=1)

    @cached_property
    def center_probabilities(self) -> Tensor:
        """Upper bound on the softmax of the nominal outputs, (b, K)."""
        return softmax(Interval.point(self.center)).lower * (1 + self.softmax_roundoff)[:, None]

    @cached_property
    def largest_variance(self) -> Tensor:
        """Upper bound on ``max_k p_k (1 - p_k)`` of these probabilities, (b,)."""
        above, below = self.probabilities.lower - 0.5, 0.5 - self.probabilities.upper
        nearest = torch.maximum(above, below, out=above).amin(dim=1).clamp_(min=0)
        return 0.25 - nearest.square() + accumulated_roundoff(_FEW, nearest.dtype)

    def grown(self, by: Tensor) -> OutputBounds:
        """Return bounds on everything within the Euclidean distance ``by``, (b,), of this set."""
        more = by[:, None] + accumulated_roundoff(_FEW, by.dtype) * (by[:, None] + self.box.magnitude)
        box = Interval.trusted(self.box.lower - more, self.box.upper + more)
        return OutputBounds(self.center, (self.radius + by) * _UPWARD, box)


@dataclass(frozen=True)
class LabelPerturbation:
    """The targets that the adversary can write in place of those of some samples.

    Args:
        clean: targets as they are: an `Interval`, or `ClassLabels`.
        poisoned: all targets allowed by the adversary, of the same kind.
        radius: largest Euclidean norm of a change; None if it is that of the enclosing box.
    """

    clean: Interval | ClassLabels
    poisoned: Interval | ClassLabels
    radius: float | None = None

    def distance(self) -> Tensor:
        """Return the largest ``‖ỹ - y‖₂``, (b,): that of the box, or the radius if it is smaller."""
        clean, poisoned = self.clean, self.poisoned
        assert isinstance(clean, Interval)
        assert isinstance(poisoned, Interval)
        farthest = torch.maximum(poisoned.upper - clean.lower, clean.lower - poisoned.lower)
        distance: Tensor = euclidean_norm(farthest.reshape(len(farthest), -1), dim=1)
        return distance if self.radius is None else distance.clamp(max=self.radius)

    def flippable(self, classes: int) -> Tensor:
        """Return whether each class label can change, boolean (b,).

        Args:
            classes: number of classes.
        """
        assert isinstance(self.poisoned, ClassLabels)
        if not self.poisoned.flippable:
            return torch.zeros_like(self.poisoned.index, dtype=torch.bool)
        return self.poisoned.reachable(classes).sum(dim=1) > 1


class HeadLoss(ABC):
    """A loss ``scale · Σ_k φ(f_k, y_k)``, or over the classes jointly.

    Args:
        scale: factor in front, positive; ``1 / K`` for a mean over K outputs.
        limits: sizes of outputs beyond which runs compute something else; there `rounding` is infinite.
    """

    def __init__(self, scale: float, limits: tuple[LogitLimit, ...] = ()) -> None:
        self.scale = scale
        self.limits = limits

    @abstractmethod
    def value(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return ℓ by torch's own function, (b,).

        Args:
            outputs: f, (b, K).
            target: of the same samples, as torch takes it.
        """

    @abstractmethod
    def gradient(self, outputs: Tensor, target: Target) -> Tensor:
        """Return ``∂ℓ/∂f``, (b, K).

        Args:
            outputs: f, (b, K).
            target: of the same samples.
        """

    @abstractmethod
    def curvature(self, bounds: OutputBounds, target: Target) -> tuple[Tensor, Tensor]:
        """Return a lower and an upper bound on the eigenvalues of ``∂²ℓ/∂f²`` over the outputs, each (b,)."""

    @abstractmethod
    def gradient_change(self, bounds: OutputBounds, target: Target) -> Tensor:
        """Return an upper bound on ``‖∂ℓ/∂f(f̃) - ∂ℓ/∂f(f)‖₂`` over all f̃ in the bounds, (b,)."""

    @abstractmethod
    def label_change(self, labels: LabelPerturbation, outputs: int) -> Tensor:
        """Return an upper bound on ``‖∂ℓ/∂f(f, ỹ) - ∂ℓ/∂f(f, y)‖₂`` over the adversary's labels and all f, (b,).

        Args:
            labels: the labels that the adversary can write.
            outputs: number of outputs, K.
        """

    @property
    @abstractmethod
    def label_slope(self) -> float:
        """Largest ``‖∂ℓ/∂f(f, ỹ) - ∂ℓ/∂f(f, y)‖ / ‖ỹ - y‖`` for numbers as labels."""

    @abstractmethod
    def rounding(self, gradient: Tensor, bounds: OutputBounds, arithmetic: Arithmetic) -> Tensor:
        """Bound by how much ``∂ℓ/∂f`` of the same outputs and labels differs in floating point, (b,).

        Args:
            gradient: upper bound on ``‖∂ℓ/∂f‖``, (b,).
            bounds: on the outputs.
            arithmetic: of the run.
        """

    def gradients_on_a_line(self, outputs: int) -> bool:
        """Return whether all gradients ``∂ℓ/∂f`` of a sample are multiples of one vector."""
        return outputs == 1

    def clips_to_convex(self, outputs: int) -> bool:
        """Return whether gradients that are scaled to at most some norm are gradients of a convex function of f.

        Args:
            outputs: number of outputs, K.

        Reference:
            docs/theory.md, section 10.12.
        """
        return self.gradients_on_a_line(outputs)

    def _within_limits(self, error: Tensor, bounds: OutputBounds, arithmetic: Arithmetic) -> Tensor:
        """Return the rounding, or infinity for samples whose outputs can exceed a limit."""
        if not self.limits:
            return error
        limit = min(limit(arithmetic, bounds.center.shape[1]) for limit in self.limits)
        within = bounds.box.magnitude.amax(dim=1) <= limit
        return torch.where(within, error, torch.full_like(error, math.inf))

    def energy(self, feature_change: Tensor, bounds: OutputBounds, labels: LabelPerturbation) -> Tensor:
        """Bound ``qᵀ H⁻¹ q`` from above for every change q of the gradient and average H of the curvature, (b,).

        It is infinite if the curvature is not bounded away from zero.

        Args:
            feature_change: upper bound on the part of ‖q‖₂ that features cause, (b,).
            bounds: on the outputs of the clean sample; H is an average of curvatures there.
            labels: the labels that the adversary can write, which cause the rest of q.
        """
        change = feature_change + self.label_change(labels, bounds.center.shape[1])
        low, _ = self.curvature(bounds, labels.clean)
        return torch.where(change > 0, change.square() / low, torch.zeros_like(change))

    def largest_gradient(self, labels: LabelPerturbation, outputs: int) -> float:
        """Return an upper bound on ``‖∂ℓ/∂f‖₂`` for all outputs and these labels; infinity if there is none.

        Args:
            labels: the labels that the adversary can write.
            outputs: number of outputs, K.
        """
        return math.inf


class SquaredError(HeadLoss):
    """``scale · Σ_k (f_k - y_k)²``: gradient 2(f - y), curvature 2."""

    def value(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return `mse_loss`."""
        return self.scale * F.mse_loss(outputs, target, reduction="none").sum(dim=1)

    def gradient(self, outputs: Tensor, target: Target) -> Tensor:
        """Return ``2 (f - y)``."""
        return 2 * self.scale * (outputs - _point(target))

    def curvature(self, bounds: OutputBounds, target: Target) -> tuple[Tensor, Tensor]:
        """Return the constant 2."""
        constant = torch.full_like(bounds.radius, 2 * self.scale)
        return constant, constant

    def gradient_change(self, bounds: OutputBounds, target: Target) -> Tensor:
        """Return ``2 ‖f̃ - f‖``."""
        return 2 * self.scale * bounds.radius

    def label_change(self, labels: LabelPerturbation, outputs: int) -> Tensor:
        """Return ``2 ‖ỹ - y‖``."""
        return 2 * self.scale * labels.distance()

    def clips_to_convex(self, outputs: int) -> bool:
        """Return true: scaled ``2 (f - y)`` is the gradient of a Huber function of ``‖f - y‖``."""
        return True

    @property
    def label_slope(self) -> float:
        """Return 2."""
        return 2 * self.scale

    def rounding(self, gradient: Tensor, bounds: OutputBounds, arithmetic: Arithmetic) -> Tensor:
        """Return a few roundings of the gradient: it is one difference, and products."""
        return arithmetic.relative(_FEW) * gradient


class HuberError(HeadLoss):
    """``scale · Σ_k φ(f_k - y_k)`` with ``φ'(r) = slope · clamp(r, -δ, δ)``: `huber_loss` and `smooth_l1_loss`.

    Args:
        scale: factor in front.
        delta: δ, where the loss becomes linear.
        slope: curvature of the quadratic part; 1 for `huber_loss`, 1/β for `smooth_l1_loss`, whose δ is β.
    """

    def __init__(self, scale: float, delta: float, slope: float = 1.0) -> None:
        super().__init__(scale)
        self.delta = delta
        self.slope = slope

    def value(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return `huber_loss`."""
        each = F.huber_loss(outputs, target, reduction="none", delta=self.delta)
        return self.scale * self.slope * each.sum(dim=1)

    @property
    def largest_slope(self) -> float:
        """``|∂ℓ/∂f_k|`` of large residuals."""
        return self.scale * self.slope * self.delta

    @property
    def label_slope(self) -> float:
        """Return the curvature of the quadratic part."""
        return self.scale * self.slope

    def rounding(self, gradient: Tensor, bounds: OutputBounds, arithmetic: Arithmetic) -> Tensor:
        """Return a few roundings of the gradient: it is one difference, cut, and products."""
        return arithmetic.relative(_FEW) * gradient

    def _slope_of(self, residual: Tensor) -> Tensor:
        return self.scale * self.slope * residual.clamp(-self.delta, self.delta)

    def gradient(self, outputs: Tensor, target: Target) -> Tensor:
        """Return ``clamp(f - y, -δ, δ)``, times the slope."""
        return self._slope_of(outputs - _point(target))

    def curvature(self, bounds: OutputBounds, target: Target) -> tuple[Tensor, Tensor]:
        """Return the slope if all residuals are small, zero if all are large, and both as bounds otherwise."""
        roundoff = self.delta * accumulated_roundoff(_FEW, bounds.center.dtype)  # of residuals near ± δ
        lower, upper = bounds.box.lower - _point(target), bounds.box.upper - _point(target)
        quadratic = (lower >= roundoff - self.delta) & (upper <= self.delta - roundoff)
        linear = (lower >= self.delta + roundoff) | (upper <= -self.delta - roundoff)
        slope = self.scale * self.slope
        return slope * quadratic.all(dim=1).to(lower.dtype), slope * (~linear.all(dim=1)).to(lower.dtype)

    def gradient_change(self, bounds: OutputBounds, target: Target) -> Tensor:
        """Evaluate the ends of the box, where the maximum lies by monotonicity."""
        nominal, residual = self.gradient(bounds.center, target), _point(target)
        up = self._slope_of(bounds.box.upper - residual) - nominal
        down = nominal - self._slope_of(bounds.box.lower - residual)
        roundoff = self.largest_slope * accumulated_roundoff(_FEW, up.dtype)
        ends = euclidean_norm(torch.maximum(up, down) + roundoff, dim=1)
        return torch.minimum(ends, self.scale * self.slope * bounds.radius)

    def label_change(self, labels: LabelPerturbation, outputs: int) -> Tensor:
        """Return the Lipschitz bound in the label, at most ``2 δ √K`` times the slope."""
        steepest = 2 * self.largest_slope * math.sqrt(outputs)
        return (self.scale * self.slope * labels.distance()).clamp(max=steepest)

    def largest_gradient(self, labels: LabelPerturbation, outputs: int) -> float:
        """Return ``δ √K``, times the slope."""
        return self.largest_slope * math.sqrt(outputs) * _UPWARD


class LogisticLoss(HeadLoss):
    """``scale · Σ_k`` binary cross entropy of logit f_k: gradient σ(f) - y, curvature σ'.

    Args:
        scale: factor in front.
        limits: of a form that is written by hand.
        parts: number of summands that a run computes the gradient from; two for ``y log p + (1 - y) log(1 - p)``.
    """

    def __init__(self, scale: float, limits: tuple[LogitLimit, ...] = (), parts: int = 1) -> None:
        super().__init__(scale, limits)
        self.parts = parts

    def value(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return `binary_cross_entropy_with_logits`."""
        each = F.binary_cross_entropy_with_logits(outputs, target, reduction="none")
        return self.scale * each.sum(dim=1)

    def gradient(self, outputs: Tensor, target: Target) -> Tensor:
        """Return ``σ(f) - y``."""
        return self.scale * (outputs.sigmoid() - _point(target))

    def curvature(self, bounds: OutputBounds, target: Target) -> tuple[Tensor, Tensor]:
        """Evaluate σ' farthest from and nearest to zero: it falls with the distance from zero."""
        nearest, farthest = bounds.box.mignitude, bounds.box.magnitude
        roundoff = accumulated_roundoff(2 * _ELEMENTARY + _FEW, nearest.dtype)
        lower, upper = _bell(farthest).amin(dim=1), _bell(nearest).amax(dim=1)
        return self.scale * lower * (1 - roundoff), self.scale * upper * (1 + roundoff)

    def gradient_change(self, bounds: OutputBounds, target: Target) -> Tensor:
        """Evaluate the ends of the box, where the maximum lies since σ is monotone."""
        nominal, roundoff = bounds.center.sigmoid(), accumulated_roundoff(2 * _ELEMENTARY, bounds.center.dtype)
        up, down = bounds.box.upper.sigmoid() - nominal, nominal - bounds.box.lower.sigmoid()
        ends = euclidean_norm(torch.maximum(up, down) + roundoff, dim=1)
        _, steepest = self.curvature(bounds, target)
        return torch.minimum(self.scale * ends, steepest * bounds.radius)

    def label_change(self, labels: LabelPerturbation, outputs: int) -> Tensor:
        """Return ``‖ỹ - y‖``, at most 1 for a flip."""
        return self.scale * labels.distance()

    @property
    def label_slope(self) -> float:
        """Return 1."""
        return self.scale

    def rounding(self, gradient: Tensor, bounds: OutputBounds, arithmetic: Arithmetic) -> Tensor:
        """Return the rounding of a sigmoid, which is at most 1, and of its difference to the label.

        Two summands are the gradients of ``y log p`` and ``(1 - y) log(1 - p)``, or of others with weights no larger
        than ``|y|`` and ``|1 - y|``, which add up to at most ``1 + 2 |y| <= 3 + 2 |g|`` where one has ``2 + |g|``.
        """
        sigmoid = 2 * self.scale * math.sqrt(bounds.center.shape[1])
        error = self.parts * arithmetic.relative(_ELEMENTARY + _FEW) * (sigmoid + gradient)
        return self._within_limits(error, bounds, arithmetic)

    def largest_gradient(self, labels: LabelPerturbation, outputs: int) -> float:
        """Return ``√K`` for labels in [0, 1], and infinity if a label can lie outside."""
        poisoned = labels.poisoned
        assert isinstance(poisoned, Interval)
        proper = bool((poisoned.lower >= 0).all() and (poisoned.upper <= 1).all())
        return self.scale * math.sqrt(outputs) * _UPWARD if proper else math.inf


class SoftmaxLoss(HeadLoss):
    """``scale ·`` cross entropy of the softmax over f with class labels: gradient p - e_y, curvature diag(p) - p pᵀ.

    With smoothing s the targets are ``(1 - s) e_y + s / K`` instead of the unit vectors e_y.

    Args:
        scale: factor in front.
        limits: of a form that is written by hand.
        smoothing: s, in [0, 1].
    """

    def __init__(self, scale: float, limits: tuple[LogitLimit, ...] = (), smoothing: float = 0.0) -> None:
        super().__init__(scale, limits)
        self.smoothing = smoothing

    @property
    def label_weight(self) -> float:
        """Weight of e_y, the part of a target that a label decides."""
        return 1 - self.smoothing

    def value(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return `cross_entropy`."""
        return self.scale * F.cross_entropy(outputs, target, reduction="none", label_smoothing=self.smoothing)

    def gradient(self, outputs: Tensor, target: Target) -> Tensor:
        """Return ``p - (1 - s) e_y - s / K``."""
        assert isinstance(target, ClassLabels)
        label = target.index.long()[:, None]
        pull = outputs.new_full(label.shape, -self.label_weight)
        difference = softmax(Interval.point(outputs)).lower.scatter_add(1, label, pull)
        return self.scale * (difference - self.smoothing / outputs.shape[1])

    def curvature(self, bounds: OutputBounds, target: Target) -> tuple[Tensor, Tensor]:
        """Return zero, attained in the direction of equal logits, and ``2 max_k p_k (1 - p_k)`` by Gershgorin."""
        largest = 2 * bounds.largest_variance
        return torch.zeros_like(largest), self.scale * largest.clamp(max=_SOFTMAX_LIPSCHITZ)

    def gradients_on_a_line(self, outputs: int) -> bool:
        """Return whether there are at most two classes: the entries of ``p - e_y`` add up to zero."""
        return outputs <= 2

    @property
    def label_slope(self) -> float:
        """Return zero: class labels are no numbers."""
        return 0.0

    def rounding(self, gradient: Tensor, bounds: OutputBounds, arithmetic: Arithmetic) -> Tensor:
        """Return the rounding of probabilities, whose exponents are rounded relative to the outputs.

        Smoothed targets are added up once more, since their sum multiplies the probabilities.
        """
        classes = bounds.center.shape[1]
        exponents = arithmetic.relative(_FEW) * bounds.box.magnitude.amax(dim=1)
        sums = arithmetic.relative((2 if self.smoothing else 1) * classes + 2 * _ELEMENTARY)
        error = self.scale * (exponents + sums) + arithmetic.relative(_FEW) * gradient
        return self._within_limits(error, bounds, arithmetic)

    def gradient_change(self, bounds: OutputBounds, target: Target) -> Tensor:
        """Return the smaller of the Lipschitz bound and that from the extremes of each probability over the box."""
        probability, nominal = bounds.probabilities, bounds.center_probabilities
        roundoff = accumulated_roundoff(2 * _FEW, nominal.dtype) + 2 * bounds.softmax_roundoff[:, None]
        up, down = probability.upper - nominal, nominal - probability.lower
        ends = euclidean_norm(torch.maximum(up, down, out=up).add_(roundoff * nominal), dim=1)
        _, steepest = self.curvature(bounds, target)
        return torch.minimum(self.scale * ends, steepest * bounds.radius)

    def label_change(self, labels: LabelPerturbation, outputs: int) -> Tensor:
        """Return ``(1 - s) ‖e_y - e_ỹ‖ = (1 - s) √2`` if the label can be flipped, else 0."""
        return self.scale * self.label_weight * math.sqrt(2) * _UPWARD * labels.flippable(outputs).to(torch.float64)

    def energy(self, feature_change: Tensor, bounds: OutputBounds, labels: LabelPerturbation) -> Tensor:
        """Return the largest ``qᵀ H⁺ q = (1 - s)² (1/p_y + 1/p_ỹ)`` for ``q = (1 - s) (e_y - e_ỹ)``.

        It is convex in H, so the largest over the outputs bounds that of averages. It is infinite if features change.

        Reference:
            docs/theory.md, eq. (10.22).
        """
        assert isinstance(labels.poisoned, ClassLabels)
        infinite = torch.full_like(feature_change, math.inf)
        if bool((feature_change > 0).all()):
            return infinite
        label, least = labels.poisoned.index.long()[:, None], bounds.probabilities.lower
        others = labels.poisoned.reachable(bounds.center.shape[1]).scatter_(1, label, False)
        rarest = least.masked_fill(~others, math.inf).amin(dim=1)
        strength = self.scale * self.label_weight**2
        energy = strength * (1 / least.gather(1, label).squeeze(1) + 1 / rarest)
        energy = torch.where(others.any(dim=1), energy, torch.zeros_like(energy))
        return torch.where(feature_change > 0, infinite, energy)

    def largest_gradient(self, labels: LabelPerturbation, outputs: int) -> float:
        """Return √2, the diameter of the simplex, which holds p and every target."""
        return self.scale * math.sqrt(2) * _UPWARD


def _bell(distance: Tensor) -> Tensor:
    """Return ``σ'`` at a distance from zero, without cancellation."""
    return torch.sigmoid(distance) * torch.sigmoid(-distance)


def _point(target: Target) -> Tensor:
    assert isinstance(target, Interval)
    return target.lower.reshape(target.shape[0], -1)
