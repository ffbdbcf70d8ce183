"""A linear head whose samples' gradients are clipped to a norm: most of what it trains on stays convex."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.aggregation.rounded_sums import CLIPPED_ROUNDINGS
from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.clipped.poison import ForeignSamples, NominalSamples
from agt_lightning.domains.ball.layers import LayerBall
from agt_lightning.domains.ball.linear import LinearAnalysis
from agt_lightning.domains.ball.norms import append_one, lost_in_squares
from agt_lightning.domains.ball.radius import StepConstants
from agt_lightning.domains.ball.remainder import Remainder
from agt_lightning.domains.ball.roundoff import GradientRoundoff
from agt_lightning.domains.ball.step_data import StepData
from agt_lightning.domains.head import HeadLayer
from agt_lightning.domains.losses import HeadLoss


class ClippedAnalysis:
    """The step of a linear head that is trained on ``c_i = P(g_i) x̂_iᵀ``, P the projection to norm ``κ / ‖x̂_i‖``.

    ``c_i`` is the gradient of sample i, clipped to Euclidean norm κ over weight and bias together. Its change over the
    ball is ``D_i (g̃_i - g_i) x̂_iᵀ``, ``0 <= D_i <= τ_i``, where τ_i is below 1 if the sample is clipped all over the
    ball. For squared error, one output and two classes it is the change of the gradient of a convex loss. For others it
    is so for samples that are not clipped, and all others can turn a little against the movement.

    Args:
        ball: the layer and the ball.
        data: all samples of the step, without poison.
        loss: of one sample.
        kappa: κ, in units of the gradient of one sample's loss.

    Reference:
        docs/theory.md, eq. (10.39) to (10.43); docs/floats.md, eq. (B.10).
    """

    def __init__(self, ball: LayerBall, data: StepData, loss: HeadLoss, kappa: float) -> None:
        self.linear = LinearAnalysis(ball, data.samples)
        self.data = data
        self.loss = loss
        self.kappa = kappa
        self.gradient = self.linear.output_gradient(loss, data.target)
        self._arithmetic = ball.arithmetic

    @cached_property
    def outward(self) -> float:
        """Factor above the bounds' own rounding of sums, products and norms of numbers that are not negative."""
        return 1 + self._arithmetic.own_relative(self.data.own_roundings + self.linear.roundings)

    @cached_property
    def inputs(self) -> Tensor:
        """``x̂``, (b, d) or (b, d + 1)."""
        return append_one(self.data.samples.inputs, self.linear.layer.trains_bias)

    @cached_property
    def nominal(self) -> Tensor:
        """``P(g)`` at the nominal parameters as computed, (b, K): the rows of ``P(g) x̂ᵀ``."""
        sizes = euclidean_norm(self.gradient.nominal, dim=1) * self.linear.jacobian_norm
        return self.gradient.nominal * (self.kappa / sizes).clamp(max=1)[:, None]

    def total(self, weights: Tensor) -> Tensor:
        """``Σ_i w_i c_i`` at the nominal parameters as computed, (K, d) or (K, d + 1); weights are (b,)."""
        return (self.nominal * weights[:, None]).T @ self.inputs

    def gradient_by_name(self, layer: HeadLayer, weights: Tensor) -> dict[str, Tensor]:
        """Return the same by parameter name."""
        total = self.total(weights)
        gradient = {layer.weight: total[:, : self.data.samples.inputs.shape[1]]}
        if layer.bias is not None and layer.trains_bias:
            gradient[layer.bias] = total[:, -1]
        return gradient

    # --- the part that moves with the parameters ---------------------------------------------------------------------

    @cached_property
    def slopes(self) -> Tensor:
        """``τ_i λ_i``, upper bound on how steep ``P(g)`` is in the outputs, (b,)."""
        return self._shrinkage * self.gradient.curvature

    @cached_property
    def _shrinkage(self) -> Tensor:
        """``τ = min(1, κ / ‖g̃ x̂ᵀ‖)`` for the smallest ``‖g̃‖`` in the ball, (b,); 0 beyond κ where g is on a line."""
        size = euclidean_norm(self.gradient.nominal, dim=1)
        rounding = (self.outward - 1) * (size + self.gradient.change)
        least = (size - self.gradient.change - rounding).clamp(min=0) * self.linear.jacobian_norm
        share = (self.kappa / least * self.outward).clamp(max=1)
        return torch.where(share < 1, 0.0, 1.0) if self._on_a_line else share

    @property
    def _outputs(self) -> int:
        return self.gradient.nominal.shape[1]

    @property
    def _on_a_line(self) -> bool:
        return self.loss.gradients_on_a_line(self._outputs)

    @cached_property
    def convex(self) -> Tensor:
        """1 for samples whose clipped gradient is surely the gradient of a convex loss in the ball, else 0, (b,)."""
        if self.loss.clips_to_convex(self._outputs):
            return torch.ones_like(self.slopes)
        largest = (self.gradient.norm + self.gradient.change) * self.linear.jacobian_norm * self.outward
        return (largest <= self.kappa).to(self.slopes.dtype)

    def remainder(self, weights: Tensor) -> Remainder:
        """Bound ``Σ_i w_i (c̃_i - c_i)`` over the samples that are not in `convex`; weights are (b,).

        Reference:
            docs/theory.md, eq. (10.43).
        """
        others = weights * (1 - self.convex)
        moved = self._shrinkage * self.gradient.change * self.linear.jacobian_norm
        against = self.slopes * self.linear.outputs.radius.square() / 8
        return Remainder(
            monotone=float(others @ moved.clamp(max=2 * self.kappa)),
            discord=float(others @ against),
        )

    # --- rounding ----------------------------------------------------------------------------------------------------

    @property
    def _clip_roundoff(self) -> float:
        """Relative rounding of a clipped gradient: its norm is summed in the type of the bounds."""
        elements = self._outputs * self.inputs.shape[1]
        return self._arithmetic.relative(CLIPPED_ROUNDINGS) + self._arithmetic.own_relative(elements)

    @property
    def _underflow(self) -> float:
        return 2 * lost_in_squares(self._outputs * self.inputs.shape[1], self.inputs)

    @property
    def rounded_kappa(self) -> float:
        """Upper bound on the norm of a clipped gradient as a run computes it."""
        return self.kappa * (1 + self._clip_roundoff) + self._underflow

    @cached_property
    def roundoff(self) -> GradientRoundoff:
        """Rounding of ``c_i`` anywhere in the ball: P does not enlarge that of the gradient."""
        plain = self.linear.roundoff.gradient(self.gradient.norm + self.gradient.change, self.gradient.error)
        largest = plain.magnitude.clamp(max=self.kappa)
        own = self._clip_roundoff * largest + self._underflow
        return GradientRoundoff(plain.error + own, largest + own)

    # --- the step ----------------------------------------------------------------------------------------------------

    def nominal_samples(self, weights: Tensor, sum_relative: float) -> NominalSamples:
        """Return what poison bounds need of the samples at the nominal parameters.

        Args:
            weights: w_i of each sample in the loss, (b,).
            sum_relative: rounding of the sum over all samples.
        """
        return NominalSamples(
            inputs=self.inputs,
            outputs=self.nominal,
            norms=(self.gradient.norm * self.linear.jacobian_norm).clamp(max=self.kappa),
            errors=self.roundoff.with_sum(sum_relative),
            weights=weights,
            kappa=self.rounded_kappa * (1 + sum_relative),
            relative=self.outward - 1,
        )

    def step_constants(self, weights: Tensor, foreign: ForeignSamples) -> StepConstants:
        """Compute everything that one step of the radius needs.

        Args:
            weights: w_i of each sample in the loss, (b,).
            foreign: the samples that the adversary can bring and take.
        """
        sum_relative = self._arithmetic.relative(self.data.sum_roundings + foreign.n)
        heaviest = foreign.heaviest(weights)
        steep = heaviest * self.slopes * self.convex
        roundoff, brought = self.roundoff, foreign.n * float(heaviest.max()) * self.rounded_kappa
        return StepConstants(
            trace=self.outward * float(steep @ self.linear.jacobian_norm.square()),
            norm=lambda: self.outward * self.linear.curvature_norm(steep),
            remainders=(self.outward * self.remainder(heaviest),),
            poison=self.outward * foreign.largest(self.nominal_samples(weights, sum_relative)),
            energy=math.inf,
            rest=0.0,
            roundoff=self.outward * float(heaviest @ roundoff.with_sum(sum_relative)),
            gradient=self.outward * (float(heaviest @ roundoff.magnitude) + brought),
        )
