"""Hidden units and outputs of a head with one hidden layer, for all parameters in the ball."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.analysis import BallAnalysis
from agt_lightning.domains.ball.layers import LayerBall
from agt_lightning.domains.ball.norms import with_one
from agt_lightning.domains.ball.one_hidden.activation_scan import (
    ActivationScan,
    ActivationStats,
    UnstablePreactivations,
)
from agt_lightning.domains.ball.perturbation import Perturbation, PropagatedPerturbation
from agt_lightning.domains.ball.roundoff import HeadRoundoff, largest_row_errors, result_errors, value_errors
from agt_lightning.domains.ball.step_data import Samples
from agt_lightning.domains.losses import OutputBounds


class OneHiddenBounds(BallAnalysis):
    """The part of the analysis that bounds hidden units, outputs and their Jacobian.

    ``‖J̃‖ <= s + R ‖x̂‖`` and ``‖J̄‖ <= s + R/2 ‖x̂‖`` with ``s = (‖ẑ‖² + ‖W₂ on active units‖² ‖x̂‖²)^½``.

    Args:
        ball: the two layers and the ball.
        samples: at the nominal parameters.
        features: what the adversary can do to their features; None if they stay.

    Attributes:
        first: W₁.
        second: W₂.
        radius: R.
        hidden: h, (b, h).
        hidden_bounds: bounds on it from another domain; None without one.
        scan: which units are active.
        propagated: how far poisoned features move preactivations; None if features stay.

    Reference:
        docs/theory.md, eq. (10.6) for s, (10.7) for the outputs, (10.10) and (10.16) for unstable units.
        docs/floats.md, eq. (B.7) for units that are zero up to rounding.
    """

    def __init__(self, ball: LayerBall, samples: Samples, features: Perturbation | None = None) -> None:
        super().__init__(ball, samples, features)
        self.first, self.second = ball.layers
        self.radius = ball.radius
        self.hidden = samples.layers[0]
        self.hidden_bounds = None if samples.layer_bounds is None else samples.layer_bounds[0]
        self.scan = ActivationScan(self.hidden)
        weight = self.first.weight
        self.propagated = None if features is None else PropagatedPerturbation.through(weight, features)

    @cached_property
    def _feature_norm(self) -> Tensor:
        """``‖x‖``, (b,)."""
        norm: Tensor = euclidean_norm(self.samples.inputs, dim=1)
        return norm

    @cached_property
    def input_norm(self) -> Tensor:
        """``‖x̂‖``, (b,)."""
        return with_one(self._feature_norm, self.first.trains_bias)

    @cached_property
    def _largest_input(self) -> Tensor:
        """``‖x̂‖`` of clean and of poisoned features, (b,)."""
        return self.input_norm if self.propagated is None else self.input_norm + self.propagated.norm

    @cached_property
    def unit_error(self) -> Tensor:
        """Rounding of each h, (b,): a unit this close to zero counts as unstable, for it may be on in some runs."""
        return largest_row_errors(self.ball, self.first, self._largest_input, self.input_error)

    @cached_property
    def hidden_error(self) -> Tensor:
        """``‖fl(h) - h‖``, (b,)."""
        return result_errors(self.ball, self.first, self._largest_input, self.input_error)

    def _hidden_change(self, norm: Tensor) -> Tensor:
        """``R ‖x̂‖`` and the rounding: how far h can move within the ball for inputs of this norm, (b,)."""
        change: Tensor = self.radius * norm + self.unit_error
        return change

    @cached_property
    def _stats(self) -> ActivationStats:
        """One scan of all units, by the widest definition of an unstable one."""
        if self.propagated is None:
            return self.scan.stats(self._hidden_change(self.input_norm), None, self.second.squared_columns)
        within = self._hidden_change(self._largest_input)
        return self.scan.stats(within, self.propagated.results, self.second.squared_columns)

    @cached_property
    def activation_norm(self) -> Tensor:
        """``‖ẑ‖``, (b,)."""
        return with_one(self._stats.activation_norm + self.hidden_error, self.second.trains_bias)

    @property
    def unstable_under_poison(self) -> UnstablePreactivations:
        """Units with ``|h| <= R (‖x̂‖ + ‖Δx‖) + sup |W₁ⱼ Δx|``; bounds of another domain are not used."""
        return self._stats.unstable

    @cached_property
    def unstable(self) -> UnstablePreactivations:
        """Units of clean samples that can switch within the ball: ``|h| <= R ‖x̂‖``, and no sign from another domain."""
        units = self.unstable_under_poison
        if self.propagated is None and self.hidden_bounds is None:
            return units  # they are the units within reach
        return units.among(self.can_switch(units))

    def can_switch(self, units: UnstablePreactivations) -> Tensor:
        """Whether each of some units can switch within the ball for its clean sample, boolean (m,)."""
        near = units.hidden.abs() <= units.by_sample(self._hidden_change(self.input_norm))
        return near if self.hidden_bounds is None else near & units.sign_is_open(self.hidden_bounds)

    def distance_to_zero(self, units: UnstablePreactivations) -> Tensor:
        """Lower bound on ``|h|``, (m,)."""
        return (units.hidden.abs() - units.by_sample(self.unit_error)).clamp(min=0)

    @cached_property
    def distance(self) -> Tensor:
        """``t = |h| / ‖x̂‖``: how far the weights of an unstable unit must move at least to switch it, (m,)."""
        least = torch.finfo(self.input_norm.dtype).tiny
        return self.distance_to_zero(self.unstable) / self.unstable.by_sample(self.input_norm.clamp(min=least))

    def active_frobenius(self, unstable: UnstablePreactivations) -> Tensor:
        """``‖W₂‖_F`` on units that are active or among the given ones, (b,)."""
        added = unstable.by_unit(self.second.squared_columns) * (unstable.hidden <= 0)
        return (self._stats.active_sum + unstable.sums(added, len(self.hidden))).sqrt()

    @cached_property
    def active_norm(self) -> Tensor:
        """Upper bound on ``‖W₂‖`` on units that are active somewhere in the ball, (b,)."""
        return self.active_frobenius(self.unstable).clamp(max=self.second.norm)

    @cached_property
    def lipschitz(self) -> Tensor:
        """``s = (‖ẑ‖² + ‖W₂ on active units‖² ‖x̂‖²)^½``: outputs move by ``s ‖δ‖`` at first order, (b,)."""
        return torch.hypot(self.activation_norm, self.active_norm * self.input_norm)

    @property
    @override
    def jacobian_norm(self) -> Tensor:
        return self.lipschitz + self.radius * self.input_norm

    @property
    @override
    def mean_jacobian_norm(self) -> Tensor:
        return self.lipschitz + self.radius / 2 * self.input_norm

    @cached_property
    @override
    def roundoff(self) -> HeadRoundoff:
        values = [self.input_norm, self.activation_norm + self.radius * self.input_norm]
        errors = value_errors(self.ball, values, self.input_error)
        derivatives = [self.active_norm + self.radius, torch.ones_like(self.input_norm)]
        return HeadRoundoff(self.ball, values, errors, derivatives)

    @cached_property
    @override
    def outputs(self) -> OutputBounds:
        """``‖Δf‖ <= R s + R²/2 ‖x̂‖`` and rounding, cut to the bounds of another domain."""
        change = self.radius * self.lipschitz + self.radius * self.radius / 2 * self.input_norm
        outward = 1 + self.ball.arithmetic.own_relative(self.roundings)
        change = outward * (change + 2 * self.roundoff.output_error)
        return OutputBounds.around(self.samples.outputs, change, self.samples.output_bounds)
