"""Losses at the end of a head: gradient and curvature in the outputs, and their suprema over reachable outputs.

Each loss is convex in the outputs f of one sample, ``ℓ(f, y)`` with f of shape (K,). The ball domain needs how far its
gradient moves and how strongly it curves while f stays within `OutputBounds`; evaluated there and not over all outputs,
since a global constant such as 1/4 for the logistic loss makes few large steps look unstable.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.arithmetic import softmax
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels

Target = Interval | ClassLabels
"""Targets of a batch: numbers as a point interval (b, ...), or class labels (b,)."""

_SOFTMAX_LIPSCHITZ = 0.5
"""Largest eigenvalue of ``diag(p) - p pᵀ``: 1/2, at two classes of equal probability."""


@dataclass(frozen=True)
class OutputBounds:
    """Where the outputs of each sample can be: in a Euclidean ball and in a box, both around the nominal outputs.

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
        """The ball, and its enclosing box intersected with ``box``; either can be the smaller one."""
        lower, upper = center - radius[:, None], center + radius[:, None]
        if box is None:
            return cls(center, radius, Interval.trusted(lower, upper))
        lower, upper = torch.maximum(lower, box.lower), torch.minimum(upper, box.upper)
        # Rounding must not push the box off the center that both contain.
        tight = Interval.trusted(torch.minimum(lower, center), torch.maximum(upper, center))
        farthest = torch.maximum(tight.upper - center, center - tight.lower)
        return cls(center, torch.minimum(radius, farthest.norm(dim=1)), tight)

    @cached_property
    def probabilities(self) -> Interval:
        """Of the softmax over the box, (b, K)."""
        return softmax(self.box)

    @cached_property
    def largest_variance(self) -> Tensor:
        """``max_k p_k (1 - p_k)`` of these probabilities, (b,)."""
        above, below = self.probabilities.lower - 0.5, 0.5 - self.probabilities.upper
        nearest = torch.maximum(above, below, out=above).amin(dim=1).clamp_(min=0)
        return 0.25 - nearest.square()

    def grown(self, by: Tensor) -> OutputBounds:
        """Everything within ``by``, (b,), of this set."""
        box = Interval.trusted(self.box.lower - by[:, None], self.box.upper + by[:, None])
        return OutputBounds(self.center, self.radius + by, box)


@dataclass(frozen=True)
class LabelPerturbation:
    """What the adversary can write in place of the targets of some samples.

    Args:
        clean: targets as they are: an `Interval`, or `ClassLabels`.
        poisoned: all targets that the adversary can write, of the same kind.
        radius: largest Euclidean norm of a change, where it is less than that of the enclosing box; else None.
    """

    clean: Interval | ClassLabels
    poisoned: Interval | ClassLabels
    radius: float | None = None

    def distance(self) -> Tensor:
        """Largest ``‖ỹ - y‖₂``, (b,): that of the box, or the radius if it is smaller."""
        clean, poisoned = self.clean, self.poisoned
        assert isinstance(clean, Interval)
        assert isinstance(poisoned, Interval)
        farthest = torch.maximum(poisoned.upper - clean.lower, clean.lower - poisoned.lower)
        distance: Tensor = farthest.reshape(len(farthest), -1).norm(dim=1)
        return distance if self.radius is None else distance.clamp(max=self.radius)

    def flippable(self, classes: int) -> Tensor:
        """Whether a class label can change, (b,)."""
        assert isinstance(self.poisoned, ClassLabels)
        if not self.poisoned.flippable:
            return torch.zeros_like(self.poisoned.index, dtype=torch.bool)
        return self.poisoned.reachable(classes).sum(dim=1) > 1


class HeadLoss(ABC):
    """A loss ``scale · Σ_k φ(f_k, y_k)``, or over the classes jointly.

    Args:
        scale: factor in front, positive; ``1 / K`` for a mean over K outputs.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    @abstractmethod
    def gradient(self, outputs: Tensor, target: Target) -> Tensor:
        """``∂ℓ/∂f``, (b, K).

        Args:
            outputs: f, (b, K).
            target: of the same samples.
        """

    @abstractmethod
    def curvature(self, outputs: OutputBounds, target: Target) -> tuple[Tensor, Tensor]:
        """Smallest and largest eigenvalue of ``∂²ℓ/∂f²`` over the bounds, a lower and an upper one, each (b,)."""

    @abstractmethod
    def gradient_change(self, outputs: OutputBounds, target: Target) -> Tensor:
        """Upper bound on ``‖∂ℓ/∂f(f̃) - ∂ℓ/∂f(f)‖₂`` over f̃ within the bounds, (b,)."""

    @abstractmethod
    def label_change(self, labels: LabelPerturbation, outputs: int) -> Tensor:
        """Upper bound on ``‖∂ℓ/∂f(f, ỹ) - ∂ℓ/∂f(f, y)‖₂`` over the adversary's labels and all f, (b,)."""

    def energy(self, feature_change: Tensor, outputs: OutputBounds, labels: LabelPerturbation) -> Tensor:
        """Upper bound on ``qᵀ H⁻¹ q`` for every change q of the gradient and every average H of the curvature, (b,).

        Infinite where the curvature is not bounded away from zero.

        Args:
            feature_change: upper bound on the part of ‖q‖₂ that features cause, (b,).
            outputs: bounds on the outputs of the sample as it is; H is an average of curvatures there.
            labels: what the adversary can write, which causes the rest of q.
        """
        change = feature_change + self.label_change(labels, outputs.center.shape[1])
        low, _ = self.curvature(outputs, labels.clean)
        return torch.where(change > 0, change.square() / low, torch.zeros_like(change))

    def largest_gradient(self, labels: LabelPerturbation, outputs: int) -> float:
        """Upper bound on ``‖∂ℓ/∂f‖₂`` for all outputs and these labels; infinity if there is none."""
        return math.inf


class SquaredError(HeadLoss):
    """``scale · Σ_k (f_k - y_k)²``: gradient 2(f - y), curvature 2."""

    def gradient(self, outputs: Tensor, target: Target) -> Tensor:
        """``2 (f - y)``."""
        return 2 * self.scale * (outputs - _point(target))

    def curvature(self, outputs: OutputBounds, target: Target) -> tuple[Tensor, Tensor]:
        """The constant 2."""
        constant = torch.full_like(outputs.radius, 2 * self.scale)
        return constant, constant

    def gradient_change(self, outputs: OutputBounds, target: Target) -> Tensor:
        """``2 ‖f̃ - f‖``."""
        return 2 * self.scale * outputs.radius

    def label_change(self, labels: LabelPerturbation, outputs: int) -> Tensor:
        """``2 ‖ỹ - y‖``."""
        return 2 * self.scale * labels.distance()


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

    def _slope_of(self, residual: Tensor) -> Tensor:
        return self.scale * self.slope * residual.clamp(-self.delta, self.delta)

    def gradient(self, outputs: Tensor, target: Target) -> Tensor:
        """``clamp(f - y, -δ, δ)``, times the slope."""
        return self._slope_of(outputs - _point(target))

    def curvature(self, outputs: OutputBounds, target: Target) -> tuple[Tensor, Tensor]:
        """The slope where the residual can be small, and zero where it can be large."""
        lower, upper = outputs.box.lower - _point(target), outputs.box.upper - _point(target)
        quadratic = (lower >= -self.delta) & (upper <= self.delta)
        linear = (lower >= self.delta) | (upper <= -self.delta)
        slope = self.scale * self.slope
        return slope * quadratic.all(dim=1).to(lower.dtype), slope * (~linear.all(dim=1)).to(lower.dtype)

    def gradient_change(self, outputs: OutputBounds, target: Target) -> Tensor:
        """By monotonicity, attained at the ends of the box."""
        own, residual = self.gradient(outputs.center, target), _point(target)
        up = self._slope_of(outputs.box.upper - residual) - own
        down = own - self._slope_of(outputs.box.lower - residual)
        ends = torch.maximum(up, down).norm(dim=1)
        return torch.minimum(ends, self.scale * self.slope * outputs.radius)

    def label_change(self, labels: LabelPerturbation, outputs: int) -> Tensor:
        """Lipschitz in the label, and never more than from one end to the other."""
        steepest = 2 * self.scale * self.slope * self.delta * math.sqrt(outputs)
        return (self.scale * self.slope * labels.distance()).clamp(max=steepest)

    def largest_gradient(self, labels: LabelPerturbation, outputs: int) -> float:
        """``δ √K``, times the slope."""
        return self.scale * self.slope * self.delta * math.sqrt(outputs)


class LogisticLoss(HeadLoss):
    """``scale · Σ_k`` binary cross entropy of logit f_k: gradient σ(f) - y, curvature σ'."""

    def gradient(self, outputs: Tensor, target: Target) -> Tensor:
        """``σ(f) - y``."""
        return self.scale * (outputs.sigmoid() - _point(target))

    def curvature(self, outputs: OutputBounds, target: Target) -> tuple[Tensor, Tensor]:
        """σ' falls with the distance from zero."""
        nearest, farthest = outputs.box.mignitude, outputs.box.magnitude
        return self.scale * _bell(farthest).amin(dim=1), self.scale * _bell(nearest).amax(dim=1)

    def gradient_change(self, outputs: OutputBounds, target: Target) -> Tensor:
        """σ is monotone: attained at the ends of the box."""
        own = outputs.center.sigmoid()
        ends = torch.maximum(outputs.box.upper.sigmoid() - own, own - outputs.box.lower.sigmoid()).norm(dim=1)
        _, steepest = self.curvature(outputs, target)
        return torch.minimum(self.scale * ends, steepest * outputs.radius)

    def label_change(self, labels: LabelPerturbation, outputs: int) -> Tensor:
        """``‖ỹ - y‖``, at most 1 for a flip."""
        return self.scale * labels.distance()

    def largest_gradient(self, labels: LabelPerturbation, outputs: int) -> float:
        """``√K`` for labels in [0, 1]; labels outside, which a ball of labels can reach, pull without limit."""
        poisoned = labels.poisoned
        assert isinstance(poisoned, Interval)
        proper = bool((poisoned.lower >= 0).all() and (poisoned.upper <= 1).all())
        return self.scale * math.sqrt(outputs) if proper else math.inf


class SoftmaxLoss(HeadLoss):
    """``scale ·`` cross entropy of the softmax over f with class labels: gradient p - e_y, curvature diag(p) - p pᵀ."""

    def gradient(self, outputs: Tensor, target: Target) -> Tensor:
        """``p - e_y``."""
        assert isinstance(target, ClassLabels)
        own = target.index.long()[:, None]
        difference = softmax(Interval.point(outputs)).lower.scatter_add(1, own, outputs.new_full(own.shape, -1.0))
        return self.scale * difference

    def curvature(self, outputs: OutputBounds, target: Target) -> tuple[Tensor, Tensor]:
        """By Gershgorin at most ``2 max_k p_k (1 - p_k)``; zero below, in the direction of equal logits."""
        largest = 2 * outputs.largest_variance
        return torch.zeros_like(largest), self.scale * largest.clamp(max=_SOFTMAX_LIPSCHITZ)

    def gradient_change(self, outputs: OutputBounds, target: Target) -> Tensor:
        """The Lipschitz bound, and the extremes of every probability over the box."""
        probability, own = outputs.probabilities, softmax(Interval.point(outputs.center)).lower
        up, down = probability.upper - own, own - probability.lower
        ends = torch.maximum(up, down, out=up).norm(dim=1)
        _, steepest = self.curvature(outputs, target)
        return torch.minimum(self.scale * ends, steepest * outputs.radius)

    def label_change(self, labels: LabelPerturbation, outputs: int) -> Tensor:
        """``‖e_y - e_ỹ‖ = √2`` where the label can be flipped."""
        return self.scale * math.sqrt(2) * labels.flippable(outputs).to(torch.float64)

    def energy(self, feature_change: Tensor, outputs: OutputBounds, labels: LabelPerturbation) -> Tensor:
        """``qᵀ H⁺ q = 1/p_y + 1/p_ỹ`` for ``q = e_y - e_ỹ``, convex in H: its largest value bounds averages.

        A change of features has no such form: infinite.
        """
        assert isinstance(labels.poisoned, ClassLabels)
        infinite = torch.full_like(feature_change, math.inf)
        if bool((feature_change > 0).all()):
            return infinite
        own, least = labels.poisoned.index.long()[:, None], outputs.probabilities.lower
        others = labels.poisoned.reachable(outputs.center.shape[1]).scatter_(1, own, False)
        rarest = least.masked_fill(~others, math.inf).amin(dim=1)
        energy = self.scale * (1 / least.gather(1, own).squeeze(1) + 1 / rarest)
        energy = torch.where(others.any(dim=1), energy, torch.zeros_like(energy))
        return torch.where(feature_change > 0, infinite, energy)

    def largest_gradient(self, labels: LabelPerturbation, outputs: int) -> float:
        """``‖p - e_y‖ <= √2``."""
        return self.scale * math.sqrt(2)


def _bell(distance: Tensor) -> Tensor:
    """``σ'`` at a distance from zero, without cancellation."""
    return torch.sigmoid(distance) * torch.sigmoid(-distance)


def _point(target: Target) -> Tensor:
    assert isinstance(target, Interval)
    return target.lower.reshape(target.shape[0], -1)
