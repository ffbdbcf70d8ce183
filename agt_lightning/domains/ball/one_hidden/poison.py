"""Effect of poisoned features on a head with one hidden layer, anywhere in the ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.norms import lost_in_squares
from agt_lightning.domains.ball.one_hidden.activation_scan import UnstablePreactivations, rows_of
from agt_lightning.domains.ball.one_hidden.bounds import OneHiddenBounds
from agt_lightning.domains.ball.one_hidden.jumps import poison_jumps
from agt_lightning.domains.ball.one_hidden.switching import SwitchingUnits
from agt_lightning.domains.ball.output_gradient import OutputGradient, PoisonedOutputGradient
from agt_lightning.domains.ball.perturbation import Perturbation, PropagatedPerturbation
from agt_lightning.domains.ball.poison_bounds import FeatureEffect, JumpsApart
from agt_lightning.domains.ball.unstable import Pairs, largest_norm
from agt_lightning.interval import Interval
from agt_lightning.rounding import accumulated_roundoff


def mean_jacobian_error(bounds: OneHiddenBounds) -> Tensor:
    """``‖J̃ - J̄‖ <= ‖x̂‖ (‖W₂ on T‖ + R/2 (1 + [T not empty]))`` for each sample, (b,).

    T are unstable units, as many as the ball can pay to switch: ``Σ_T t_j² <= R²``.

    Args:
        bounds: of these samples.

    Reference:
        docs/theory.md, eq. (10.21).
    """
    radius, unstable, norm = bounds.radius, bounds.unstable, bounds.input_norm
    budget = torch.full_like(norm, radius * radius * (1 + bounds.ball.arithmetic.own_relative(bounds.roundings)))
    switched = largest_norm(unstable, unstable.by_unit(bounds.second.column_norms), bounds.distance, budget)
    return norm * (switched.clamp(max=bounds.second.norm) + radius / 2 * (1 + unstable.any(norm)))


@dataclass(frozen=True)
class OneHiddenEffect(FeatureEffect):
    """The change of a head with one hidden layer, layer by layer.

    Args:
        bounds: of the poisonable samples.
        rows: norms of W̃₂ on the units in front of the first layer.
        switching: units that switch with the features.
        feature_change: ``‖Δx‖``, (m,).
        activation_change: ``‖Δz‖``, (m,).
    """

    bounds: OneHiddenBounds
    rows: FirstLayerRows
    switching: SwitchingUnits
    feature_change: Tensor
    activation_change: Tensor

    @override
    def gradient_change(self, gradient: PoisonedOutputGradient) -> Tensor:
        """Bound both layers.

        A row of layer 1 changes by at most ``Q ‖x̂‖ + E' ‖Δx‖`` where the unit keeps its sign, and by
        ``max(E' (‖x̂‖ + ‖Δx‖), E ‖x̂‖)`` where it switches, times ``‖W̃₂ e_j‖``; layer 2 by
        ``Q (‖ẑ‖ + R ‖x̂‖) + E' ‖Δz‖``.
        """
        before, change, after = gradient.before, gradient.change, gradient.after
        norm, moved = self.bounds.input_norm, self.feature_change
        stable = change * norm + after * moved
        switching = torch.maximum(after * (norm + moved), torch.maximum(before * norm, stable))
        second = change * (self.bounds.activation_norm + self.bounds.radius * norm) + after * self.activation_change
        return torch.hypot(self.rows.norm(stable, switching), second)

    @override
    def jumps_apart(
        self, clean: OutputGradient, poisoned: PoisonedOutputGradient, mean_jacobian_error: Tensor
    ) -> JumpsApart:
        """Bound rows of units that keep their signs, and the second layer; jumps are summed unit by unit.

        Reference:
            docs/theory.md, eq. (10.32).
        """
        change, after, moved = poisoned.change, poisoned.after, self.feature_change
        second = change * (self.bounds.activation_norm + self.bounds.radius * self.bounds.input_norm)
        stable = self.rows.active_norm + self.rows.radius
        whole = torch.hypot(
            stable * (change * self.bounds.input_norm + after * moved), second + after * self.activation_change
        )
        jacobian = torch.hypot(stable * moved, self.activation_change)
        return JumpsApart(
            whole=whole,
            rest=change * mean_jacobian_error + after * jacobian,
            jumps=poison_jumps(self.bounds, self.switching, moved, clean, poisoned),
        )


@dataclass(frozen=True)
class FirstLayerRows:
    """Norms of ``W̃₂`` on the units whose row of the first layer changes with the features, (m,) each.

    Args:
        active_norm: ``‖W₂‖`` on units that may be active before or after.
        active_frobenius: its Frobenius norm.
        switched: ``‖W₂ diag(T)‖_F`` on units that switch with the features, as many as these can pay. Not the
            spectral norm: units that turn on meet the gradient after, units that turn off the one before.
        any_switch: whether there is such a unit.
        radius: R.
    """

    active_norm: Tensor
    active_frobenius: Tensor
    switched: Tensor
    any_switch: Tensor
    radius: float

    def norm(self, stable: Tensor, switching: Tensor) -> Tensor:
        """Norm of the first layer's part if a row is ``stable`` for active units, ``switching`` for those that switch.

        In units of ``‖W̃₂ e_j‖``; ``stable <= switching``, all (m,).
        """
        apart = torch.hypot(self.active_norm * stable, self.switched * switching)
        more = self.switched.square() * (switching.square() - stable.square())
        joint = ((self.active_frobenius * stable).square() + more).sqrt() + lost_in_squares(8, stable)
        return torch.minimum(apart, joint) + self.radius * torch.where(self.any_switch, switching, stable)


def feature_effect(bounds: OneHiddenBounds, poisoned_bounds: Interval | None) -> OneHiddenEffect:
    """Bound what the perturbation of ``bounds`` changes.

    With ``‖W₁ Δx‖ <= ω``: ``‖Δz‖ <= ω + R ‖Δx‖``, and
    ``‖Δf‖ <= ‖W₂ diag(s) W₁ Δx‖ + R (ω² + ‖W₂ on active units‖² ‖Δx‖²)^½ + R²/2 ‖Δx‖`` with slopes s in [0, 1].

    Args:
        bounds: of the poisonable samples, with their perturbation.
        poisoned_bounds: on h for poisoned features from another domain; None without one.

    Reference:
        docs/theory.md, eq. (10.16) to (10.18).
    """
    assert bounds.propagated is not None
    radius, norm, propagated = bounds.radius, bounds.input_norm, bounds.propagated
    moved, unstable = propagated.norm.expand_as(norm), _unstable(bounds, poisoned_bounds)
    squares, outputs = _with_mean_slopes(bounds, propagated, unstable)
    pair_change = unstable.of(propagated.results)
    squares = squares + unstable.sums(pair_change.square(), len(norm)) / 2  # of all units that are or may be active
    lost = lost_in_squares(4 * propagated.results.shape[1], squares)
    hidden_change = torch.minimum(squares.sqrt() + lost, bounds.first.norm * moved)
    switching = SwitchingUnits.within(bounds, unstable, hidden_change + radius * (norm + moved))
    rows = _first_layer_rows(bounds, switching)
    other = _with_half_slopes(bounds, unstable, pair_change, hidden_change)
    output = torch.minimum(euclidean_norm(outputs, dim=1) + other, rows.active_norm * hidden_change)
    output = output + radius * torch.hypot(hidden_change, rows.active_norm * moved) + radius * radius / 2 * moved
    activation_change = hidden_change + radius * moved
    return OneHiddenEffect(
        output=output,
        jacobian=torch.hypot(rows.norm(moved, norm + moved), activation_change),
        bounds=bounds,
        rows=rows,
        switching=switching,
        feature_change=moved,
        activation_change=activation_change,
    )


def _unstable(bounds: OneHiddenBounds, poisoned_bounds: Interval | None) -> UnstablePreactivations:
    """Return units that can have different signs with clean and with poisoned features."""
    unstable = bounds.unstable_under_poison
    if poisoned_bounds is None or bounds.hidden_bounds is None:
        return unstable
    return unstable.with_open_sign(bounds.hidden_bounds, poisoned_bounds)


def _first_layer_rows(bounds: OneHiddenBounds, switching: SwitchingUnits) -> FirstLayerRows:
    """Bound the norms in front of the first layer, by a knapsack for ``Σ_T ‖W₂ e_j‖²``."""
    unstable, between = switching.units, switching.between
    switched = between.largest_norm(unstable.by_unit(bounds.second.column_norms))
    frobenius = bounds.active_frobenius(unstable)
    active = frobenius.clamp(max=bounds.second.norm)
    return FirstLayerRows(active, frobenius, switched, between.any.bool(), bounds.radius)


def _with_mean_slopes(
    bounds: OneHiddenBounds, propagated: PropagatedPerturbation, unstable: Pairs
) -> tuple[Tensor, Tensor]:
    """``Σ_j s_j sup |W₁ⱼ Δx|²``, (m,), and each ``sup |W₂ₖ diag(s) W₁ Δx|``, (m, K), for the mean slopes s.

    The slope of an active unit is 1, that of an unstable one 1/2 ± 1/2: the first part cancels among units before the
    norm, the second cannot (`_with_half_slopes`).
    """
    squares = propagated.results.square()
    matrices = [row[:, None] * bounds.first.weight for row in bounds.second.weight]
    sums, outputs = [], []
    for rows, slopes in bounds.scan.mean_slopes(unstable):
        features, row_squares = propagated.features[rows], rows_of(squares, rows)
        outputs.append(torch.stack([features.sample_support(slopes @ matrix) for matrix in matrices], dim=1))
        sums.append(slopes @ row_squares[0] if len(squares) == 1 else (slopes * row_squares).sum(dim=1))
    return torch.cat(sums), torch.cat(outputs) + _rounding_of_products(bounds, propagated.features)


def _rounding_of_products(bounds: OneHiddenBounds, features: Perturbation) -> Tensor:
    """Rounding of ``sup |W₂ₖ diag(s) W₁ Δx|``, relative to ``|W₂ₖ| |W₁| |Δx|``, (m, K) or (1, K)."""
    magnitudes = bounds.second.weight.abs() @ bounds.first.weight.abs()
    slack = accumulated_roundoff(2 * bounds.roundings, magnitudes.dtype)
    return slack * (features.half_widths @ magnitudes.T)


def _with_half_slopes(bounds: OneHiddenBounds, unstable: Pairs, pair_change: Tensor, hidden_change: Tensor) -> Tensor:
    """Bound the change of the outputs by the other part of unstable units' slopes, ± 1/2, (m,)."""
    squares = unstable.sums(unstable.by_unit(bounds.second.squared_columns), len(hidden_change))
    together = squares.sqrt().clamp(max=bounds.second.norm) * hidden_change
    one_by_one = unstable.sums(pair_change * unstable.by_unit(bounds.second.column_norms), len(hidden_change))
    return torch.minimum(one_by_one, together) / 2
