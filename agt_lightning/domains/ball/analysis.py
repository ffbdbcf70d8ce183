"""Suprema over the ball that one step of the radius needs, for heads of any depth."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from agt_lightning.domains.ball.layers import LayerBall
from agt_lightning.domains.ball.output_gradient import OutputGradient
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.poison_bounds import FeatureEffect, PoisonBounds
from agt_lightning.domains.ball.radius import StepConstants
from agt_lightning.domains.ball.step_data import Poison, Samples, StepData
from agt_lightning.domains.losses import HeadLoss, OutputBounds
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff


class BallAnalysis(ABC):
    """The outputs f of some samples over a ball of parameters; a subclass for each depth states what differs.

    Tildes stand for values at parameters θ̃ in the ball, plain letters for values at the nominal θ, bars for means on
    the way from θ to θ̃. ``J = ∂f/∂θ``, with ``f̃ - f = J̄ (θ̃ - θ)``.

    Args:
        ball: the layers and the ball.
        samples: at the nominal parameters.
        features: the perturbation that `feature_effect` will be called with, for analyses that bound clean and poisoned
            samples in one go; None if it will not be called.

    Reference:
        docs/theory.md, section 10: eq. (10.5) for A and E, which has the monotone part M (J there).
    """

    def __init__(self, ball: LayerBall, samples: Samples, features: Perturbation | None = None) -> None:
        self.ball = ball
        self.samples = samples

    @property
    @abstractmethod
    def outputs(self) -> OutputBounds:
        """Bounds on f̃ of the samples as they are."""

    @property
    @abstractmethod
    def jacobian_norm(self) -> Tensor:
        """Upper bound on ``‖J̃‖``, (b,)."""

    @property
    def mean_jacobian_norm(self) -> Tensor:
        """Upper bound on ``‖J̄‖``, (b,)."""
        return self.jacobian_norm

    @property
    @abstractmethod
    def mean_jacobian_error(self) -> Tensor:
        """Upper bound on ``‖J̃ - J̄‖``, (b,)."""

    @property
    @abstractmethod
    def output_magnitude(self) -> Tensor:
        """Magnitude that the rounding of f is relative to, (b,)."""

    @property
    @abstractmethod
    def jacobian_magnitude(self) -> Tensor:
        """Magnitude that the rounding of J is relative to, (b,)."""

    @property
    @abstractmethod
    def roundings(self) -> int:
        """Number of roundings on the way to the gradient of one sample."""

    @abstractmethod
    def curvature_norm(self, weights: Tensor) -> float:
        """Upper bound on ``‖A‖`` for ``A = Σ_i w_i λ_i J̄_iᵀ J̄_i``.

        Args:
            weights: ``w_i λ_i``, weight of each sample times the largest curvature of its loss, (b,).
        """

    @abstractmethod
    def remainder(self, gradient: OutputGradient, weights: Tensor) -> tuple[float, float]:
        """Upper bounds on ``‖E - M‖`` and ``‖M‖``.

        ``E = Σ_i w_i (J̃_iᵀ g̃_i - J_iᵀ g_i - J̄_iᵀ Δg_i)`` is what the network's own curvature and its kinks add to the
        step, and M a part of it with ``⟨θ̃ - θ, M⟩ >= 0``.

        Args:
            gradient: of all samples.
            weights: w_i of each sample in the loss, (b,).
        """

    @abstractmethod
    def feature_effect(self, features: Perturbation, poisoned_bounds: tuple[Interval, ...] | None) -> FeatureEffect:
        """Bound what poisoned features change of the network, anywhere in the ball.

        Args:
            features: the perturbation of these samples.
            poisoned_bounds: bounds on each layer's results for poisoned features from another domain; None without one.
        """

    def poison_bounds(self, poison: Poison, gradient: OutputGradient) -> PoisonBounds:
        """Bound how far poisoned gradients can be from clean ones at the same parameters, anywhere in the ball.

        Args:
            poison: what the adversary can do to these samples.
            gradient: of the same samples.

        Reference:
            docs/theory.md, eq. (10.15), (10.18), (10.19) and (10.21).
        """
        labels = poison.labels
        if poison.features is None:
            change = gradient.label_change(labels)
            energy = gradient.energy(labels, torch.zeros_like(change))
            return PoisonBounds(change * self.jacobian_norm, energy, change * self.mean_jacobian_error)
        effect = self.feature_effect(poison.features, poison.layer_bounds)
        poisoned = gradient.poisoned(labels, effect.output)
        return PoisonBounds(
            whole=effect.gradient_change(poisoned),
            energy=gradient.energy(labels, poisoned.feature_change),
            rest=poisoned.change * self.mean_jacobian_error + poisoned.after * effect.jacobian,
        )

    @classmethod
    def step_constants(cls, ball: LayerBall, data: StepData, weights: Tensor, loss: HeadLoss) -> StepConstants:
        """Compute everything that one step of the radius needs.

        Args:
            ball: the layers and the ball.
            data: all samples of the step, with their poison.
            weights: w_i of each sample in the loss, (b,).
            loss: of one sample.
        """
        poison = data.poison
        all_poisonable = poison is not None and poison.covers(len(weights))
        analysis = cls(ball, data.samples, poison.features if poison is not None and all_poisonable else None)
        gradient = OutputGradient(loss, analysis.outputs, data.target)
        remainder, monotone = analysis.remainder(gradient, weights)
        if poison is None:
            whole = energy = rest = 0.0
        elif all_poisonable:
            whole, energy, rest = analysis.poison_bounds(poison, gradient).worst(weights, poison.n)
        else:
            part = cls(ball, data.samples[poison.rows], poison.features)
            gradient_of_part = OutputGradient(loss, part.outputs, poison.labels.clean)
            bounds = part.poison_bounds(poison, gradient_of_part)
            whole, energy, rest = bounds.worst(weights[poison.rows], poison.n)
        return StepConstants(
            trace=float(weights @ (gradient.curvature * analysis.mean_jacobian_norm.square())),
            norm=lambda: analysis.curvature_norm(weights * gradient.curvature),
            remainder=remainder + analysis._rounding(gradient, weights),
            monotone=monotone,
            poison=whole,
            energy=energy,
            rest=rest,
        )

    def _rounding(self, gradient: OutputGradient, weights: Tensor) -> float:
        """Bound the rounding of ``Σ_i w_i J_iᵀ g_i``, relative to the sum of its magnitudes."""
        magnitude = (gradient.norm + gradient.curvature * self.output_magnitude) * self.jacobian_magnitude
        return accumulated_roundoff(len(weights) + self.roundings, weights.dtype) * float(weights @ magnitude)
