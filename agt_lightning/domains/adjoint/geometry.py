"""One recorded step as all directions meet it: samples at the nominal parameters, units that may switch, the poison.

Everything that is a bound is rounded upward here; what the loops of `kernel` round is counted by `roundings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.arithmetic.compiled import Array as Values
from agt_lightning.domains.adjoint.curvature import hessian_parts, third_derivative
from agt_lightning.domains.adjoint.directions import hidden_values
from agt_lightning.domains.adjoint.kernel import (
    BLOCK,
    CLASSES,
    NO_LABELS,
    NUMBERS,
    FeatureArrays,
    LabelArrays,
    PairArrays,
    SampleArrays,
)
from agt_lightning.domains.adjoint.shares import bin_edges, bins_of
from agt_lightning.domains.ball.layers import LayerBall
from agt_lightning.domains.ball.one_hidden import OneHiddenAnalysis
from agt_lightning.domains.ball.output_gradient import OutputGradient
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.step_data import Poison, Samples, StepData
from agt_lightning.domains.losses import HeadLoss, SoftmaxLoss
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels


@dataclass(frozen=True, eq=False)
class StepGeometry:
    """One step at its nominal parameters.

    Args:
        ball: the two layers, R before the step, and the roundings of runs; bounds are computed in float64.
        data: samples, targets and poison; the values of layers in it are not read.
        weights: w_i, (b,).
        loss: of one sample.

    Reference:
        docs/theory.md, section 13.
    """

    ball: LayerBall
    data: StepData
    weights: Tensor
    loss: HeadLoss

    @property
    def radius(self) -> float:
        """R before the step."""
        return self.ball.radius

    @cached_property
    def samples(self) -> Samples:
        """The samples, with the values of both layers."""
        first, second = self.ball.layers
        hidden = hidden_values(first, self.data.samples.inputs)
        outputs = hidden_values(second, hidden.clamp(min=0))
        given = self.data.samples
        return Samples(given.inputs, (hidden, outputs), None, given.input_error, given.target_error)

    @property
    def hidden(self) -> Tensor:
        """h, (b, h)."""
        return self.samples.layers[0]

    @cached_property
    def features(self) -> Perturbation | None:
        """What can move the features of each sample, those that cannot be poisoned included; None if they stay."""
        poison = self.data.poison
        if poison is None or poison.features is None:
            return None
        given = poison.features
        if len(given.half_widths) == 1:
            return given
        widths = self.samples.inputs.new_zeros(self.samples.inputs.shape)
        widths[poison.rows] = given.half_widths
        return Perturbation(widths, given.scale, given.p)

    @cached_property
    def analysis(self) -> OneHiddenAnalysis:
        """The ball's bounds on units, outputs and loss."""
        return OneHiddenAnalysis(self.ball, self.samples, self.features)

    @cached_property
    def upward(self) -> float:
        """Above the rounding of sums and products of numbers that are not negative."""
        return 1 + self.ball.arithmetic.own_relative(self.data.sum_roundings + self.analysis.roundings)

    @cached_property
    def gradient_change(self) -> Tensor:
        """Γ, upper bound on ``‖g̃ - g‖``, (b,)."""
        return self.upward * self._gradient.change

    @cached_property
    def gradient_norm(self) -> Tensor:
        """``‖g‖``, (b,)."""
        return self.upward * self._gradient.norm

    @cached_property
    def gradient(self) -> Tensor:
        """g, (b, K)."""
        return self._gradient.nominal

    @cached_property
    def curvature(self) -> Tensor:
        """λ, (b,)."""
        return self.upward * self._gradient.curvature

    @cached_property
    def output_change(self) -> Tensor:
        """D, upper bound on ``‖f̃ - f‖``, (b,)."""
        return self.upward * self.analysis.outputs.radius

    @cached_property
    def norm(self) -> Tensor:
        """N = ``‖x̂‖``, (b,)."""
        return self.upward * self.analysis.input_norm

    @cached_property
    def doubt(self) -> Tensor:
        """ρ: units this close to zero may be on or off, whatever the ball, (b,)."""
        return self.upward * self.analysis.unit_error

    @cached_property
    def near(self) -> Tensor:
        """Units that the ball may switch, boolean (b, h)."""
        return self.hidden.abs() <= (self.upward * (self.radius * self.norm + self.doubt))[:, None]

    @cached_property
    def reachable(self) -> Tensor:
        """Units that may be active in the ball, boolean (b, h)."""
        return (self.hidden > 0) | self.near

    @cached_property
    def unsure(self) -> Tensor:
        """Units that ball and poisoned features together may switch, boolean (b, h)."""
        if self.features is None:
            return self.near
        reach = self.radius * (self.norm + self.moved) + self.doubt
        return self.hidden.abs() <= self.upward * (reach[:, None] + self.unit_moves)

    @cached_property
    def moved(self) -> Tensor:
        """ρ₂ = ``‖Δx‖``, (b,)."""
        assert self.features is not None
        return (self.upward * self.features.norm()).expand(len(self.norm))

    @cached_property
    def unit_moves(self) -> Tensor:
        """e_ij = ``sup |W₁ⱼΔx|``, (b, h), or (1, h) if it is the same for all."""
        assert self.features is not None
        return self.upward * self.features.support(self.ball.layers[0].weight)

    @cached_property
    def edges(self) -> Values:
        """Of the bins of distances."""
        return bin_edges(self.radius)

    @cached_property
    def third(self) -> Tensor:
        """Upper bound on the third derivative of the loss in the ball, (b,)."""
        return third_derivative(self.loss, self.curvature)

    @cached_property
    def curvature_norm(self) -> float:
        """Upper bound on ``‖Σ_i w_i λ_i J̄_iᵀJ̄_i‖``."""
        return self.upward * self.analysis.curvature_norm(self.weights * self.curvature)

    @cached_property
    def coupling(self) -> Tensor:
        """``Σ_i w_i g_ik m_ij x̂_i``, (K, h, d + 1): how the two layers of H pull at each other."""
        weighted = self.gradient * self.weights[:, None]
        mask = (self.hidden > 0).to(weighted.dtype)
        return torch.stack([(mask * column[:, None]).T @ self.inputs for column in weighted.T])

    @cached_property
    def inputs(self) -> Tensor:
        """x̂, (b, d + 1)."""
        return torch.nn.functional.pad(
            self.data.samples.inputs, (0, 1), value=float(self.ball.layers[0].trains_bias)
        ).contiguous()

    @cached_property
    def sample_arrays(self) -> SampleArrays:
        """For the loops of `kernel`."""
        second = self.ball.layers[1]
        values = torch.nn.functional.pad(self.hidden.clamp(min=0), (0, 1), value=float(second.trains_bias))
        curve, rank = hessian_parts(self.loss, self.samples.outputs)
        cubic = self.upward * self.third * self.output_change.square() / 2
        numbers = [self.weights, self.norm, self.gradient_norm, self.gradient_change, self.curvature, cubic]
        return SampleArrays(
            *(
                _array(each)
                for each in (
                    torch.nn.functional.pad(self.inputs, (0, -self.inputs.shape[1] % BLOCK)),
                    (self.hidden > 0).double(),
                    self.reachable.double(),
                    values,
                    self.gradient @ second.weight,
                    self.gradient,
                    curve,
                    rank,
                    torch.stack(numbers, dim=1),
                    second.weight,
                    self.upward * second.column_norms,
                )
            )
        )

    @cached_property
    def pair_arrays(self) -> PairArrays:
        """For the loops of `kernel`."""
        pairs = np.flatnonzero((self.near | self.unsure).numpy())
        sample, unit = np.divmod(pairs, self.hidden.shape[1])
        size = np.abs(self.hidden.numpy().reshape(-1)[pairs])
        near, doubt = self.near.numpy().reshape(-1)[pairs], self.doubt.numpy()[sample]
        norm = self.norm.clamp(min=torch.finfo(torch.float64).tiny).numpy()[sample]
        distance = np.maximum(size - doubt, 0) / norm * (2 - self.upward)
        sign = np.where(size <= doubt, 0.0, np.sign(self.hidden.numpy().reshape(-1)[pairs]))
        start = np.searchsorted(sample, np.arange(len(self.norm) + 1))
        return PairArrays(
            start.astype(np.int64), unit.astype(np.int64), np.where(near, bins_of(distance, self.edges), -1), sign
        )

    @cached_property
    def label_arrays(self) -> LabelArrays:
        """For the loops of `kernel`."""
        poison, shape, none = self.data.poison, self.gradient.shape, torch.zeros_like(self.norm)
        blank, index = np.zeros((1, shape[1])), np.zeros(1, dtype=np.int64)
        if poison is None:
            return LabelArrays(NO_LABELS, blank, blank, index, blank, _array(none), 0.0)
        largest = none.index_copy(0, poison.rows, self.upward * self._gradient_of_labels(poison))
        clean, poisoned = poison.labels.clean, poison.labels.poisoned
        if isinstance(poisoned, ClassLabels):
            reach = self._spread(poison, poisoned.reachable(shape[1]).double())
            own = np.zeros(len(none), dtype=np.int64)
            own[poison.rows.numpy()] = poisoned.index.reshape(-1).long().numpy()
            return LabelArrays(CLASSES, blank, blank, own, _array(reach), _array(largest), self._flip_slope)
        assert isinstance(clean, Interval)
        slope = self.loss.label_slope
        fall, rise = (poisoned.upper - clean.lower).clamp(min=0), (clean.lower - poisoned.lower).clamp(min=0)
        lower = self._spread(poison, -slope * self.upward * fall.reshape(len(fall), -1))
        upper = self._spread(poison, slope * self.upward * rise.reshape(len(rise), -1))
        return LabelArrays(NUMBERS, _array(lower), _array(upper), index, blank, _array(largest), 0.0)

    @property
    def _flip_slope(self) -> float:
        """Factor of ``e_y - e_ỹ`` in the change of g by a flip: labels decide a part of smoothed targets."""
        assert isinstance(self.loss, SoftmaxLoss)
        return self.loss.scale * self.loss.label_weight

    def _gradient_of_labels(self, poison: Poison) -> Tensor:
        """Upper bound on the change ``‖q‖`` of g by labels, (m,)."""
        return self.loss.label_change(poison.labels, self.gradient.shape[1]).double()

    def _spread(self, poison: Poison, values: Tensor) -> Tensor:
        """Give poisonable samples their rows, and the others zeros."""
        return values.new_zeros(len(self.norm), *values.shape[1:]).index_copy(0, poison.rows, values)

    @cached_property
    def label_change(self) -> Tensor:
        """``‖q‖``, (b,); zero for samples that cannot be poisoned."""
        return torch.from_numpy(self.label_arrays.largest)

    @cached_property
    def feature_slack(self) -> Tensor:
        """E_f, upper bound on ``‖f(x̃) - f(x) - a Δx‖`` anywhere in the ball, (b,).

        Reference:
            docs/theory.md, eq. (13.13).
        """
        second, touched = self.ball.layers[1], (self.reachable | self.unsure).double()
        moves = (touched * self.unit_moves.square()).sum(dim=1)
        columns = touched @ second.squared_columns
        linear = (moves + columns * self.moved.square()).sqrt()
        kinks = (self.unsure.double() * self.unit_moves) @ second.column_norms
        return self.upward * (self.radius * linear + self.radius**2 / 2 * self.moved + kinks)

    @cached_property
    def input_slope(self) -> Tensor:
        """``a = ∂f/∂x``, (b, K, d)."""
        first, second = self.ball.layers
        mask = (self.hidden > 0).double()
        return torch.stack([(mask * row) @ first.weight for row in second.weight], dim=1)

    @cached_property
    def feature_change(self) -> Tensor:
        """F, upper bound on ``‖f(x̃) - f(x)‖`` anywhere in the ball, (b,)."""
        assert self.features is not None
        rows = [self.features.sample_support(self.input_slope[:, k]) for k in range(self.gradient.shape[1])]
        first_order: Tensor = euclidean_norm(torch.stack(rows, dim=1), dim=1)
        # Slopes are sums with signs: their rounding is relative to norms.
        return self.upward * (first_order + self.feature_slack) + (self.upward - 1) * self.largest_slope * self._widths

    @property
    def largest_slope(self) -> float:
        """Upper bound on the size of ``∂f/∂x`` in the ball."""
        first, second = self.ball.layers
        return (first.frobenius + self.radius) * (second.frobenius + self.radius)

    @cached_property
    def _widths(self) -> Tensor:
        """Norm of the half-widths of the box of features, (b,)."""
        if self.features is None:
            return torch.zeros_like(self.norm)
        return euclidean_norm(self.features.half_widths, dim=1).expand(len(self.norm)) * self.upward

    @cached_property
    def poisoned_curvature(self) -> Tensor:
        """Upper bound on ``‖∂²ℓ/∂f²‖`` over all outputs that poison can lead to, (b,)."""
        if self.features is None:
            return self.curvature
        grown = self.analysis.outputs.grown(self.feature_change)
        return self.upward * self.loss.curvature(grown, self.data.target)[1]

    @cached_property
    def feature_arrays(self) -> FeatureArrays:
        """For the loops of `kernel`."""
        features, inputs = self.features, self.data.samples.inputs.shape[1]
        if features is None:
            nothing = np.zeros((0, inputs))
            return FeatureArrays(False, nothing[None], nothing, nothing, np.zeros(inputs), 0, nothing)
        curvature, change = self.poisoned_curvature, self.feature_change
        after = curvature * change
        cubic = third_derivative(self.loss, curvature) * (self.output_change + change / 2) * change
        factor = torch.ones_like(self.moved) if len(features.half_widths) == 1 else self.moved
        numbers = [self.moved, factor, self.feature_slack, self.upward * after, self.upward * cubic]
        scale = torch.zeros(inputs, dtype=torch.float64) if features.scale is None else features.scale.double()
        return FeatureArrays(
            True,
            _array(self.input_slope),
            _array(self.unit_moves),
            _array(features.half_widths.double()),
            _array(scale),
            0 if features.scale is None else int(features.p),
            _array(torch.stack(numbers, dim=1)),
        )

    @cached_property
    def poisonable(self) -> Tensor | None:
        """Positions of samples that can be poisoned; None if there are none."""
        return None if self.data.poison is None else self.data.poison.rows

    @cached_property
    def _gradient(self) -> OutputGradient:
        return self.analysis.output_gradient(self.loss, self.data.target)


def _array(values: Tensor) -> Values:
    return values.double().contiguous().numpy()
