"""Kinks: jumps of the gradient where parameters of the ball switch units of clean samples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agt_lightning.domains.ball.norms import append_one
from agt_lightning.domains.ball.one_hidden.bounds import OneHiddenBounds
from agt_lightning.domains.ball.one_hidden.pulls import pulls
from agt_lightning.domains.ball.output_gradient import OutputGradient
from agt_lightning.domains.ball.remainder import Remainder
from agt_lightning.domains.ball.unit_sums import UnitSums
from agt_lightning.domains.ball.unstable import UnstableUnits


@dataclass(frozen=True)
class Kinks:
    """What unstable units add to the change of the gradient if they switch.

    Row j of the first layer gains ``Σ_i w_i c_ij x̂_i`` with ``c_ij = (m̃ - m)(e_ij ± σ_ij)``, ``e_ij = g_i · W₂ e_j``
    and ``σ_ij = R ‖ḡ_i‖ + (‖W₂ e_j‖ + R/2) ‖Δg_i‖``. ``m̃ - m`` has the sign of the movement Δh_ij that switches the
    unit, but for units that rounding switches, which may move by no more than their rounding the other way.

    Args:
        bounds: of all samples of the step.
        units: unstable units by distance.
        share: ``w_i ‖x̂_i‖`` of each pair, (m,).
        mean_norm: ``‖ḡ_i‖``, (m,).
        pull: ``e_ij``, (m,).
        pull_change: ``σ_ij``, with the rounding of ``e_ij``, (m,).
        rounding: ``w_i`` times the rounding of h_ij, (m,).

    Reference:
        docs/theory.md, eq. (10.10) to (10.13); docs/floats.md, eq. (B.8).
    """

    bounds: OneHiddenBounds
    units: UnstableUnits
    share: Tensor
    mean_norm: Tensor
    pull: Tensor
    pull_change: Tensor
    rounding: Tensor

    @classmethod
    def of(cls, bounds: OneHiddenBounds, gradient: OutputGradient, weights: Tensor, rounding: Tensor) -> Kinks:
        """Find them.

        Args:
            bounds: of all samples of the step.
            gradient: g of the same.
            weights: w_i, weight of each sample in the loss, (b,).
            rounding: of g, and of its products with W₂ relative to ``‖W₂ e_j‖``, (b,).
        """
        units = UnstableUnits.sorted(bounds.unstable, bounds.distance)
        pairs, radius = units.pairs, bounds.radius
        column_norms = pairs.by_unit(bounds.second.column_norms)
        mean_norm = pairs.by_sample(gradient.norm + gradient.change / 2)
        pull_change = radius * mean_norm + (column_norms + radius / 2) * pairs.by_sample(gradient.change)
        pull_change.addcmul_(column_norms, pairs.by_sample(rounding))
        return cls(
            bounds=bounds,
            units=units,
            share=pairs.by_sample(weights * bounds.input_norm),
            mean_norm=mean_norm,
            pull=pulls(pairs, gradient.nominal, bounds.second.weight),
            pull_change=pull_change,
            rounding=pairs.by_sample(weights * bounds.unit_error),
        )

    def slips(self) -> float:
        """Bound ``w_i ‖ḡ_i‖ ‖x̂_i‖ (r_j - t_ij)`` of all pairs, in the second layer."""
        return self.units.largest_ramps(self.share * self.mean_norm, self.bounds.radius)

    @property
    def _with_movement(self) -> Tensor:
        """``(e + σ)⁺``: the jump along the unit's movement, (m,)."""
        return (self.pull_change + self.pull).clamp(min=0)

    @property
    def _against_movement(self) -> Tensor:
        """``(σ - e)⁺``, (m,)."""
        return (self.pull_change - self.pull).clamp(min=0)

    @property
    def _discord(self) -> float:
        """How far rounding can turn jumps along the movement against it."""
        return float(self.rounding @ self._with_movement)

    def split_by_sign(self, smooth: float) -> Remainder:
        """Count jumps along the movement at second order, those against it at first order.

        Args:
            smooth: what is no jump.

        Reference:
            docs/theory.md, eq. (10.14).
        """
        radius = self.bounds.radius
        against = self.units.largest_steps(self.share * self._against_movement, radius)
        along = self.units.largest_steps(self.share * self._with_movement, radius)
        return Remainder(rest=smooth + against, monotone=along, discord=self._discord)

    def along_the_movement(self, smooth: float) -> Remainder:
        """Count all jumps K at second order, and ``⟨δ, K⟩`` at first order: they act along inputs that δ moves.

        ``⟨δ, K⟩ >= -Σ_j r_j min(V_j, Σ_{t_ij <= r_j} w_i (σ_ij - e_ij)⁺ ‖x̂_i‖)``, with V_j for any part of the pairs.

        Args:
            smooth: what is no jump.

        Reference:
            docs/theory.md, eq. (10.37) and (10.38).
        """
        radius, pairs = self.bounds.radius, self.units.pairs
        against = self.share * self._against_movement
        sign = -pairs.of(self.bounds.hidden).sign() * (self.units.distance > 0)
        inputs = append_one(self.bounds.samples.inputs, self.bounds.first.trains_bias)
        sums = UnitSums(pairs, inputs, self.bounds.input_norm, len(self.bounds.first.weight))
        together = radius * self.units.largest_steps(against, radius, sums.of_any_part(against, sign))
        size = self.units.largest_steps(self.share * (self.pull_change + self.pull.abs()), radius)
        return Remainder(rest=smooth, monotone=size, discord=together + self._discord)
