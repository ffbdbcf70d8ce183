"""One recorded step as all directions meet it: samples at the nominal parameters, units that may switch, the poison.

Everything that is a bound is rounded upward here; what the loops of `kernel` round is counted by `roundings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.arithmetic.compiled import Array as Values
from agt_lightning.domains.adjoint.curvature import hessian_parts
from agt_lightning.domains.adjoint.label_moves import ClassMoves, NumberMoves
from agt_lightning.domains.adjoint.one_hidden.arrays import (
    FeatureArrays,
    LabelArrays,
    PairArrays,
    SampleArrays,
    tile_size,
)
from agt_lightning.domains.adjoint.one_hidden.kernel import CLASSES, NO_LABELS, NUMBERS
from agt_lightning.domains.adjoint.one_hidden.shares import bin_edges, bins_of
from agt_lightning.domains.adjoint.step import StepAnalysis
from agt_lightning.domains.ball.one_hidden import OneHiddenAnalysis


@dataclass(frozen=True, eq=False)
class StepGeometry(StepAnalysis):
    """One step at its nominal parameters: signs of units, what may switch them, and what poison changes."""

    @property
    def hidden(self) -> Tensor:
        """h, (b, h)."""
        return self.samples.layers[0]

    @cached_property
    @override
    def analysis(self) -> OneHiddenAnalysis:
        return OneHiddenAnalysis(self.ball, self.samples, self.features)

    @cached_property
    def norm(self) -> Tensor:
        """N = ``‖x̂‖``, (b,)."""
        return self.upward * self.analysis.input_norm

    @cached_property
    def doubt(self) -> Tensor:
        """ρ: units this close to zero may be on or off, whatever the ball, (b,)."""
        return self.upward * self.analysis.unit_error

    @property
    def own_unit_error(self) -> Tensor:
        """Upper bound on the error of h as it is computed here, (b,)."""
        assert isinstance(self.still, OneHiddenAnalysis)
        return self.still.unit_error

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
    def unit_moves(self) -> Tensor:
        """e_ij = ``sup |W₁ⱼΔx|``, (b, h), or (1, h) if it is the same for all."""
        assert self.features is not None
        return self.upward * self.features.support(self.ball.layers[0].weight)

    @cached_property
    def edges(self) -> Values:
        """Of the bins of distances."""
        return bin_edges(self.radius)

    @cached_property
    def coupling(self) -> Tensor:
        """``Σ_i w_i g_ik m_ij x̂_i``, (K, h, d + 1): how the two layers of H pull at each other."""
        weighted = self.gradient * self.weights[:, None]
        mask = (self.hidden > 0).to(weighted.dtype)
        return torch.stack([(mask * column[:, None]).T @ self.inputs for column in weighted.T])

    @cached_property
    def tile(self) -> int:
        """Number of samples that all directions go through together."""
        outputs, units = self.ball.layers[1].weight.shape
        return min(len(self.weights), tile_size(units, outputs, self.inputs.shape[1]))

    def _by_tile(self, values: Tensor) -> Tensor:
        """Return values of samples, (b, ...), tile by tile with samples last, (t, ..., i)."""
        filled = torch.cat([values, values.new_zeros(-len(values) % self.tile, *values.shape[1:])])
        return filled.reshape(-1, self.tile, *values.shape[1:]).movedim(1, -1)

    def _tiles(self, values: Tensor) -> Values:
        return _array(self._by_tile(values))

    @cached_property
    def sample_arrays(self) -> SampleArrays:
        """For the loops of `kernel`."""
        second = self.ball.layers[1]
        values = torch.nn.functional.pad(self.hidden.clamp(min=0), (0, 1), value=float(second.trains_bias))
        curve, rank = hessian_parts(self.loss, self.samples.outputs)
        cubic = self.upward * self.third * self.output_change.square() / 2
        columns = [self.weights, self.norm, self.gradient_norm, self.gradient_change, self.curvature, cubic]
        return SampleArrays(
            inputs=self._tiles(self.inputs),
            active=self._tiles(self.hidden > 0),
            reachable=self._tiles(self.reachable),
            values=self._tiles(values),
            gradient=self._tiles(self.gradient),
            curve=self._tiles(curve),
            rank=self._tiles(rank),
            numbers=self._tiles(torch.stack(columns, dim=1)),
            second=_array(second.weight),
            second_norms=_array(self.upward * second.column_norms),
        )

    @cached_property
    def pair_arrays(self) -> PairArrays:
        """For the loops of `kernel`."""
        tile, unit, within = self._by_tile(self.near | self.unsure).nonzero(as_tuple=True)
        sample = tile * self.tile + within
        value, doubt = self.hidden[sample, unit], self.doubt[sample]
        norm = self.norm.clamp(min=torch.finfo(torch.float64).tiny)[sample]
        distance = (value.abs() - doubt).clamp(min=0) / norm * (2 - self.upward)
        bins = np.where(self.near[sample, unit].numpy(), bins_of(distance.numpy(), self.edges), -1)
        pull = (self.gradient @ self.ball.layers[1].weight)[sample, unit]
        return PairArrays(
            np.searchsorted(tile.numpy(), range(-(-len(self.weights) // self.tile) + 1)).astype(np.int64),
            within.numpy(),
            unit.numpy(),
            bins.astype(np.int64),
            _array(torch.where(value.abs() <= doubt, 0.0, value.sign())),
            _array(pull),
            np.zeros(0) if self.features is None else _array(self.unit_moves.expand(self.hidden.shape)[sample, unit]),
        )

    @cached_property
    def label_arrays(self) -> LabelArrays:
        """For the loops of `kernel`."""
        moves, index, largest = self.label_moves, np.zeros((0, 0), dtype=np.int64), self._tiles(self.label_change)
        blank = np.zeros((0, 0, 0))
        if isinstance(moves, NumberMoves):
            return LabelArrays(NUMBERS, self._tiles(moves.lower), self._tiles(moves.upper), index, blank, largest, 0.0)
        if isinstance(moves, ClassMoves):
            own, reach = self._tiles(moves.own).astype(np.int64), self._tiles(moves.reach)
            return LabelArrays(CLASSES, blank, blank, own, reach, largest, moves.slope)
        return LabelArrays(NO_LABELS, blank, blank, index, blank, largest, 0.0)

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
    @override
    def feature_change(self) -> Tensor:
        assert self.features is not None
        rows = [self.features.sample_support(self.input_slope[:, k]) for k in range(self.gradient.shape[1])]
        first_order: Tensor = euclidean_norm(torch.stack(rows, dim=1), dim=1)
        # Slopes are sums with signs: their rounding is relative to norms.
        return self.upward * (first_order + self.feature_slack) + (self.upward - 1) * self.largest_slope * self.widths

    @property
    def largest_slope(self) -> float:
        """Upper bound on the size of ``∂f/∂x`` in the ball."""
        first, second = self.ball.layers
        return (first.frobenius + self.radius) * (second.frobenius + self.radius)

    @cached_property
    def feature_arrays(self) -> FeatureArrays:
        """For the loops of `kernel`."""
        features, inputs = self.features, self.data.samples.inputs.shape[1]
        if features is None:
            nothing = np.zeros((0, 0, 0))
            return FeatureArrays(False, nothing[None], nothing, np.zeros(inputs), 0, nothing)
        widths = features.half_widths.double()
        factor = torch.ones_like(self.moved) if len(widths) == 1 else self.moved
        numbers = [self.moved, factor, self.feature_slack, self.poisoned_slope, self.poisoned_bend]
        scale = torch.zeros(inputs, dtype=torch.float64) if features.scale is None else features.scale.double()
        return FeatureArrays(
            True,
            self._tiles(self.input_slope),
            self._tiles(widths.expand(self.tile, -1) if len(widths) == 1 else widths),
            _array(scale),
            0 if features.scale is None else int(features.p),
            self._tiles(torch.stack(numbers, dim=1)),
        )


def _array(values: Tensor) -> Values:
    return values.double().contiguous().numpy()
