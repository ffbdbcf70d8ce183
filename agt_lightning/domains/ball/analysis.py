"""Suprema over the ball that one step of the radius needs, for heads of any depth."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from agt_lightning.domains.ball.layers import LayerBall
from agt_lightning.domains.ball.output_gradient import OutputGradient
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.poison_bounds import FeatureEffect, PoisonBounds, WorstPoison
from agt_lightning.domains.ball.radius import Push, StepConstants
from agt_lightning.domains.ball.remainder import Remainder
from agt_lightning.domains.ball.roundoff import HeadRoundoff
from agt_lightning.domains.ball.step_data import Poison, Samples, StepData
from agt_lightning.domains.losses import HeadLoss, OutputBounds, Target
from agt_lightning.interval import Interval


class BallAnalysis(ABC):
    """The outputs f of some samples over a ball of parameters; a subclass for each depth states what differs.

    Tildes stand for values at parameters θ̃ in the ball, plain letters for values at the nominal θ, bars for means on
    the way from θ to θ̃. ``J = ∂f/∂θ``, with ``f̃ - f = J̄ (θ̃ - θ)``.

    J̃ has the units that are on in the floating point run, which differ from those of real arithmetic where a
    preactivation is zero up to rounding; J has those that are positive in ``samples``. All else is in real arithmetic,
    and `roundoff` bounds what a run adds to that.

    Norms and sums of numbers that are not negative are computed without care for their rounding, which `step_constants`
    covers for all of them; differences are rounded outward where they are taken.

    Args:
        ball: the layers and the ball.
        samples: at the nominal parameters.
        features: the perturbation that `feature_effect` will be called with, for analyses that bound clean and poisoned
            samples in one go; None if it will not be called.

    Reference:
        docs/theory.md, section 10: eq. (10.5) for A and E, which has the monotone part M (J there); docs/floats.md,
        eq. (B.1) to (B.8).
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
    def roundoff(self) -> HeadRoundoff:
        """Sizes of everything that a run computes of these samples, and the rounding that follows."""

    @abstractmethod
    def curvature_norm(self, weights: Tensor) -> float:
        """Upper bound on ``‖A‖`` for ``A = Σ_i w_i λ_i J̄_iᵀ J̄_i``.

        Args:
            weights: ``w_i λ_i``, weight of each sample times the largest curvature of its loss, (b,).
        """

    @abstractmethod
    def remainders(self, gradient: OutputGradient, weights: Tensor) -> tuple[Remainder, ...]:
        """Bound ``E = Σ_i w_i (J̃_iᵀ g̃_i - J_iᵀ g_i - J̄_iᵀ Δg_i)`` by splittings each of which holds.

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

    def summed_magnitude(self, gradient: OutputGradient, weights: Tensor) -> float:
        """Upper bound on ``‖Σ_i w_i |fl(∇ℓ_i)|‖``, summed before the norm is taken; infinite if there is none.

        Args:
            gradient: of all samples.
            weights: w_i of each sample in the loss, (b,).

        Reference:
            docs/floats.md, eq. (B.5).
        """
        return math.inf

    @property
    def input_error(self) -> Tensor:
        """How far features of runs can be from those of ``samples``, (b,)."""
        return _zeros_unless(self.samples.input_error, self.samples.inputs)

    def output_gradient(self, loss: HeadLoss, target: Target) -> OutputGradient:
        """Return the gradient of the loss in the outputs.

        Args:
            loss: of one sample.
            target: of the samples.
        """
        target_error = _zeros_unless(self.samples.target_error, self.samples.inputs)
        arithmetic, output_error = self.ball.arithmetic, self.roundoff.output_error
        return OutputGradient(loss, self.outputs, target, arithmetic, output_error, target_error)

    def poison_bounds(self, poison: Poison, gradient: OutputGradient) -> PoisonBounds:
        """Bound how far poisoned gradients can be from clean ones at the same parameters, anywhere in the ball.

        Args:
            poison: what the adversary can do to these samples.
            gradient: of the same samples.

        Reference:
            docs/theory.md, eq. (10.15), (10.18), (10.19), (10.21) and (10.32).
        """
        labels = poison.labels
        if poison.features is None:
            change = gradient.label_change(labels)
            after = gradient.norm + gradient.change + change
            return PoisonBounds(
                whole=change * self.jacobian_norm,
                energy=gradient.energy(labels, torch.zeros_like(change)),
                rest=change * self.mean_jacobian_error,
                roundoff=self.roundoff.gradient(after, gradient.error_of(after)),
            )
        effect = self.feature_effect(poison.features, poison.layer_bounds)
        poisoned = gradient.poisoned(labels, effect.output)
        moved = poison.features.norm().expand_as(effect.output)
        roundoff = HeadRoundoff.poisoned(self.ball, self.roundoff.values, self.input_error, moved)
        error = gradient.poisoned_error(poisoned.after, effect.output, roundoff.output_error)
        return PoisonBounds(
            whole=effect.gradient_change(poisoned),
            energy=gradient.energy(labels, poisoned.feature_change),
            rest=poisoned.change * self.mean_jacobian_error + poisoned.after * effect.jacobian,
            roundoff=roundoff.gradient(poisoned.after, error),
            apart=effect.jumps_apart(gradient, poisoned, self.mean_jacobian_error),
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
        poison, arithmetic = data.poison, ball.arithmetic
        sum_relative = arithmetic.relative(data.sum_roundings)
        all_poisonable = poison is not None and poison.covers(len(weights))
        analysis = cls(ball, data.samples, poison.features if poison is not None and all_poisonable else None)
        gradient = analysis.output_gradient(loss, data.target)
        remainders = analysis.remainders(gradient, weights)
        worst, pushes = WorstPoison(), []
        if poison is not None:
            part, before = analysis, gradient
            if not all_poisonable:
                part = cls(ball, data.samples[poison.rows], poison.features)
                before = part.output_gradient(loss, poison.labels.clean)
            bounds, shares = part.poison_bounds(poison, before), weights[poison.rows]
            worst = bounds.worst(shares, poison.choice, sum_relative)
            pushes = bounds.pushes(shares, min(poison.n, len(shares))) if poison.per_epoch else []
        roundoff = analysis.roundoff.gradient(gradient.norm + gradient.change, gradient.error)
        magnitude = float(weights @ roundoff.magnitude)
        if arithmetic.run not in (None, arithmetic.own):  # then the sum over samples may be most of the rounding
            magnitude = min(magnitude, analysis.summed_magnitude(gradient, weights))
        clean = float(weights @ roundoff.error) + sum_relative * magnitude
        outward = 1 + arithmetic.own_relative(data.own_roundings + analysis.roundings)
        return StepConstants(
            trace=outward * float(weights @ (gradient.curvature * analysis.mean_jacobian_norm.square())),
            norm=lambda: outward * analysis.curvature_norm(weights * gradient.curvature),
            remainders=tuple(outward * remainder for remainder in remainders),
            poison=outward * worst.whole,
            energy=outward * worst.energy,
            rest=outward * worst.rest,
            roundoff=outward * (clean + worst.roundoff),
            gradient=outward * (magnitude + worst.magnitude),
            pushes=[Push(outward * each.poison, outward * each.energy, outward * each.rest) for each in pushes],
        )

    @property
    def roundings(self) -> int:
        """Number of roundings on the way to a bound of one sample."""
        return sum(sum(layer.weight.shape) + 8 for layer in self.ball.layers)


def _zeros_unless(error: Tensor | None, inputs: Tensor) -> Tensor:
    return inputs.new_zeros(len(inputs)) if error is None else error
