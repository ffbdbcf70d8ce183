"""Jumps of poisoned gradients: units that poisoned features switch, summed over samples unit by unit.

Where features switch unit j of sample i, row j of the first layer's gradient gains ``ẽ'_ij x̂̃_i`` or loses
``ẽ_ij x̂_i``, by ``τ_ij e_ij x̂_i`` with the nominal pull ``e_ij = g_i · W₂ e_j`` and ``τ = ± 1``, and a rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.aggregation.top_n import top_n_sum
from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.norms import append_one
from agt_lightning.domains.ball.one_hidden.bounds import OneHiddenBounds
from agt_lightning.domains.ball.one_hidden.pulls import pulls
from agt_lightning.domains.ball.one_hidden.switching import SwitchingUnits
from agt_lightning.domains.ball.output_gradient import OutputGradient, PoisonedOutputGradient
from agt_lightning.domains.ball.poison_bounds import Jumps
from agt_lightning.domains.ball.unit_sums import UnitSums
from agt_lightning.domains.ball.unstable import UnstableBetween
from agt_lightning.rounding import accumulated_roundoff


@dataclass(frozen=True)
class PoisonJumps(Jumps):
    """The jumps ``B = Σ_{i in S} w_i Σ_{j in T_i} e_j b_ijᵀ`` of at most n poisoned samples, anywhere in the ball.

    Args:
        switching: units that can switch with the features, sorted by unit: T_i are as many of them as can be paid.
        sums: sums over samples for these pairs.
        sign: τ of each pair, 0 where it is unknown, (m,).
        first_order: ``|e_ij| ‖x̂_i‖``, (m,).
        rest: ``‖b_ij - τ e_ij x̂_i‖`` but for the movement of W₂, (m,).
        moved: ``E' (‖x̂‖ + ‖Δx‖)``, which the movement of W₂ e_j has as a factor, (b,).
        radius: R.

    Reference:
        docs/theory.md, eq. (10.31) to (10.36).
    """

    switching: UnstableBetween
    sums: UnitSums
    sign: Tensor
    first_order: Tensor
    rest: Tensor
    moved: Tensor
    radius: float

    @override
    def worst(self, weights: Tensor, n: int) -> float:
        if not len(self.sign):
            return 0.0
        by_pair = self.switching.pairs.by_sample(weights)
        return self._first_order(by_pair, n) + self._rest(by_pair, n) + self._movement(weights, n)

    def _first_order(self, weights: Tensor, n: int) -> float:
        """Bound ``(Σ_j ‖v_j‖²)^½`` for ``v_j = Σ_{i in S: j in T_i} w_i τ_ij e_ij x̂_i``."""
        lengths = weights * self.first_order
        rows = torch.minimum(self.sums.largest(lengths, n), self.sums.of_any_part(lengths, self.sign))
        return min(self._paid(lengths, rows, n), self._shared(lengths, rows, n))

    def _rest(self, weights: Tensor, n: int) -> float:
        lengths = weights * self.rest
        return self._paid(lengths, self.sums.largest(lengths, n), n)

    def _movement(self, weights: Tensor, n: int) -> float:
        """Bound what ``‖δ₂ e_j‖`` adds to each row, ``Σ_j ‖δ₂ e_j‖² <= R²``."""
        return self.radius * float(self.sums.largest(self.switching.pairs.by_sample(weights * self.moved), n).max())

    def _paid(self, lengths: Tensor, rows: Tensor, n: int) -> float:
        """Bound ``(Σ_j ‖v_j‖²)^½`` if ``‖v_j‖`` is at most ``rows_j`` and a sum of ``lengths`` over S and T_i.

        ``Σ_j ‖v_j‖² <= Σ_{i in S} Σ_{j in T_i} length_ij rows_j``, a knapsack for each sample.

        Args:
            lengths: (m,).
            rows: (h,).
            n: largest number of samples in S.
        """
        products = self.switching.largest_sum(lengths * self.switching.pairs.by_unit(rows))
        lost = 4 * len(lengths) * torch.finfo(lengths.dtype).tiny  # where they underflow
        return min(math.sqrt(float(top_n_sum(products[None], n)) + lost), float(euclidean_norm(rows)))

    def _shared(self, lengths: Tensor, rows: Tensor, n: int) -> float:
        """Bound ``(Σ_j ‖v_j‖²)^½`` by ``‖v_j‖² <= min(m_j Λ_j, rows_j²)`` with ``Σ_j m_j <= n``.

        ``Λ_j`` is the largest eigenvalue of ``Σ_i κ_i length_ij² x̂_i x̂_iᵀ / ‖x̂_i‖²``, κ_i the number of units that
        sample i can switch.

        Args:
            lengths: (m,).
            rows: (h,).
            n: largest number of samples in S.
        """
        upward = 1 + accumulated_roundoff(len(lengths) + 64, lengths.dtype)
        number = (self.switching.largest_sum(torch.ones_like(lengths)) * upward).floor()
        shares = self.switching.pairs.by_sample(number) * lengths.square()
        largest = _largest_within_slopes(rows.square(), self.sums.gram_norms(shares), n)
        lost = 4 * (n + 1) * float(self.switching.pairs.by_sample(number + 1).sum()) * torch.finfo(lengths.dtype).tiny
        return math.sqrt(largest + lost)  # where squares underflow


def poison_jumps(
    bounds: OneHiddenBounds,
    switching: SwitchingUnits,
    moved: Tensor,
    clean: OutputGradient,
    poisoned: PoisonedOutputGradient,
) -> PoisonJumps:
    """Split the jumps into what is known of them, ``τ_ij e_ij x̂_i``, and a rest.

    Both pulls, before the poison and after, differ from ``e_ij`` by at most ``‖W₂ e_j‖ (G + Q) + ‖δ₂ e_j‖ E'``, where
    G, on ``‖Δg‖``, includes the rounding of ``e_ij``.

    Args:
        bounds: of the poisonable samples.
        switching: units that can switch with the features.
        moved: ``‖Δx‖``, (m,).
        clean: g of the samples.
        poisoned: bounds on g and g'.

    Reference:
        docs/theory.md, eq. (10.33).
    """
    switching = switching.sorted_by_unit()
    units, norm = switching.units, bounds.input_norm
    size, farthest = units.by_sample(norm), units.by_sample(norm + moved)
    rounding = accumulated_roundoff(bounds.roundings, norm.dtype) * clean.norm + clean.error
    change = units.by_unit(bounds.second.column_norms) * units.by_sample(clean.change + poisoned.change + rounding)
    pull = pulls(units, clean.nominal, bounds.second.weight)
    return PoisonJumps(
        switching=switching.between,
        sums=UnitSums(
            units, append_one(bounds.samples.inputs, bounds.first.trains_bias), norm, len(bounds.first.weight)
        ),
        sign=-units.hidden.sign() * pull.sign() * ~bounds.can_switch(units),
        first_order=pull.abs() * size,
        rest=change * farthest + pull.abs() * units.by_sample(moved),
        moved=poisoned.after * (norm + moved),
        radius=bounds.radius,
    )


def _largest_within_slopes(values: Tensor, slopes: Tensor, n: float) -> float:
    """Upper bound on ``Σ_j min(m_j slope_j, value_j)`` over all ``Σ_j m_j <= n``, by weak duality.

    It is ``λ n + Σ_j value_j (1 - λ / slope_j)⁺`` for every λ >= 0, and least for the slope at which n is used up.

    Args:
        values: (h,), nonnegative.
        slopes: (h,), nonnegative.
        n: what is shared.

    Example:
        >>> values, slopes = torch.tensor([4.0, 9.0]), torch.tensor([2.0, 1.0])
        >>> round(_largest_within_slopes(values, slopes, 5), 4), round(_largest_within_slopes(values, slopes, 50), 4)
        (7.0, 13.0)
    """
    moving = ~(slopes <= 0)  # NaN stays, and makes the result NaN
    values, slopes = values[moving], slopes[moving]
    ordered = slopes.sort(descending=True)
    used = (values[ordered.indices] / ordered.values).cumsum(0)
    last = int((used < n).sum())
    price = float(ordered.values[last]) if last < len(used) else 0.0
    left = (values * (1 - price / slopes).clamp(min=0)).sum()
    return price * n + float(left + accumulated_roundoff(16, values.dtype) * values.sum())
