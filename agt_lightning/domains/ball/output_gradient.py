"""Gradient of the loss in the outputs of a head, over the ball, and under poison."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.losses import HeadLoss, LabelPerturbation, OutputBounds, Target


@dataclass(frozen=True)
class OutputGradient:
    """``g = ∂ℓ/∂f`` of some clean samples while the parameters stay in the ball.

    Args:
        loss: of one sample.
        outputs: bounds on the outputs f over the ball, around the nominal ones.
        target: clean targets.
        arithmetic: roundings of runs and bounds.
        output_error: rounding of the outputs, which ``outputs`` contain, (b,).
        target_error: how far targets as runs compute them can be from ``target``, (b,).
    """

    loss: HeadLoss
    outputs: OutputBounds
    target: Target
    arithmetic: Arithmetic
    output_error: Tensor
    target_error: Tensor

    @cached_property
    def nominal(self) -> Tensor:
        """``g`` at the nominal parameters, (b, K)."""
        return self.loss.gradient(self.outputs.center, self.target)

    @cached_property
    def error(self) -> Tensor:
        """Upper bound on ``‖fl(g) - g‖`` over the ball, and on the error of `nominal`, (b,).

        It is ``λ ‖fl(f) - f‖``, the rounding of targets, and that of the loss.

        Reference:
            docs/floats.md, eq. (B.3).
        """
        return self.error_of(self._nominal_norm + self._change)

    def error_of(self, size: Tensor) -> Tensor:
        """Upper bound on ``‖fl(g) - g‖`` over the ball, with any labels for which ``‖g‖ <= size``, (b,)."""
        return self._error(size, self.curvature, self.output_error, self.outputs)

    def _error(self, size: Tensor, curvature: Tensor, output_error: Tensor, outputs: OutputBounds) -> Tensor:
        moved = curvature * output_error + self.loss.label_slope * self.target_error
        return moved + self.loss.rounding(size + moved, outputs, self.arithmetic)

    @cached_property
    def _nominal_norm(self) -> Tensor:
        norm: Tensor = euclidean_norm(self.nominal, dim=1)
        return norm

    @cached_property
    def _change(self) -> Tensor:
        """Upper bound on the distance of `nominal` from g over the ball, (b,)."""
        return self.loss.gradient_change(self.outputs, self.target)

    @cached_property
    def norm(self) -> Tensor:
        """Upper bound on ``‖g‖`` at the nominal parameters, (b,)."""
        return self._nominal_norm + self.error

    @cached_property
    def change(self) -> Tensor:
        """Upper bound on ``‖Δg‖`` over the ball, (b,)."""
        return self._change + self.error

    @cached_property
    def curvature(self) -> Tensor:
        """λ, upper bound on ``‖∂²ℓ/∂f²‖`` over the ball, (b,)."""
        return self.loss.curvature(self.outputs, self.target)[1]

    def label_change(self, labels: LabelPerturbation) -> Tensor:
        """Upper bound on the change of g when labels are poisoned, (b,)."""
        return self.loss.label_change(labels, self.outputs.center.shape[1])

    def energy(self, labels: LabelPerturbation, feature_change: Tensor) -> Tensor:
        """Upper bound on ``qᵀ H̄⁻¹ q`` for every poisoned change q of g, (b,).

        Args:
            labels: what the adversary can write.
            feature_change: upper bound on the part of ‖q‖ that poisoned features cause, (b,).
        """
        return self.loss.energy(feature_change, self.outputs, labels)

    def poisoned(self, labels: LabelPerturbation, output_change: Tensor) -> PoisonedOutputGradient:
        """Bound the gradient when features and labels are poisoned.

        With B the loss's largest gradient: ``E = min(‖g‖ + ‖Δg‖, B)``, the features add at most ``λ' ‖Δf‖`` with the
        curvature λ' over all outputs that they can lead to, labels what `label_change` bounds, ``Q`` is the sum of
        both or 2B, and ``E' = min(E + Q, B)``.

        Args:
            labels: what the adversary can write.
            output_change: ``‖Δf‖``, how far poisoned features move the outputs anywhere in the ball, (b,).

        Reference:
            docs/theory.md, eq. (10.18).
        """
        largest = self.loss.largest_gradient(labels, self.outputs.center.shape[1])
        before = (self.norm + self.change).clamp(max=largest)
        _, curvature = self.loss.curvature(self.outputs.grown(output_change), self.target)
        feature_change = (curvature * output_change).clamp(max=2 * largest)
        change = (feature_change + self.label_change(labels)).clamp(max=2 * largest)
        return PoisonedOutputGradient(before, feature_change, change, (before + change).clamp(max=largest))

    def poisoned_error(self, size: Tensor, output_change: Tensor, output_error: Tensor) -> Tensor:
        """Upper bound on ``‖fl(g) - g‖`` when features and labels are poisoned, (b,).

        Args:
            size: ``‖g‖`` of the poisoned samples, (b,).
            output_change: as for `poisoned`.
            output_error: rounding of the outputs, (b,).
        """
        outputs = self.outputs.grown(output_change + output_error)
        return self._error(size, self.loss.curvature(outputs, self.target)[1], output_error, outputs)


@dataclass(frozen=True)
class PoisonedOutputGradient:
    """Upper bounds on ``g = ∂ℓ/∂f`` of poisonable samples anywhere in the ball, (m,) each.

    Args:
        before: E, on ``‖g‖`` of the clean sample.
        feature_change: on what poisoned features change of g.
        change: Q, on what features and labels change of g.
        after: E', on ``‖g‖`` of the poisoned sample.
    """

    before: Tensor
    feature_change: Tensor
    change: Tensor
    after: Tensor
