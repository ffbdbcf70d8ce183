"""One step of one linear layer: outputs are linear in its parameters, and directions never meet them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.adjoint.curvature import hessian_parts, hessian_size, spread, third_along, third_derivative
from agt_lightning.domains.adjoint.directions import Directions
from agt_lightning.domains.adjoint.step import StepAnalysis, StepBound, StepRoundings
from agt_lightning.domains.ball.layers import REAL, Layer
from agt_lightning.domains.ball.linear import LinearAnalysis

_TILE = 4096
"""Samples that all directions go through before the next ones do."""

_TERMS = 64
"""More than the products of magnitudes in the bound of one sample."""


@dataclass(frozen=True, eq=False)
class LinearStep(StepAnalysis):
    """One step of a linear head, ``f = W x̂``.

    ``φ = C x̂`` is the same at all parameters, so that of (13.8) only the third derivative of the loss is left, and
    nothing for squared error.

    Reference:
        docs/theory.md, section 13.6.
    """

    @property
    def layer(self) -> Layer:
        """The only layer."""
        return self.ball.layers[0]

    @cached_property
    @override
    def analysis(self) -> LinearAnalysis:
        return LinearAnalysis(self.ball, self.samples, self.features)

    @override
    def prepare(self) -> None:
        for name in ("label_change", "curvature_norm", "poisoned_slope", "poisoned_bend", "hessian"):
            getattr(self, name)

    @cached_property
    def hessian(self) -> tuple[Tensor, Tensor]:
        """Λ in two parts, (b, K) each."""
        return hessian_parts(self.loss, self.samples.outputs)

    @cached_property
    @override
    def feature_change(self) -> Tensor:
        if self.features is None:
            return torch.zeros_like(self.weights)
        first_order = euclidean_norm(self.features.support(self.layer.weight), dim=1)
        return self.upward * (first_order + self.radius * self.moved)

    @override
    def back(self, directions: Directions) -> tuple[StepBound, Directions]:
        (matrix,) = directions.parts
        curved, cubic = torch.zeros_like(matrix), matrix.new_zeros(len(matrix))
        farthest, poison = torch.zeros_like(cubic), matrix.new_zeros(len(matrix), 2, len(self.weights))
        for rows in self._tiles():
            weights, along = self.weights[rows, None], self._along(matrix, rows)
            bent = self._bent(along, rows)
            curved += torch.einsum("tqk,tl->qkl", bent * weights[:, :, None], self.inputs[rows])
            third = third_along(self.loss, self.curvature[rows], along)
            cubic += (weights * third * self.output_change[rows, None].square()).sum(dim=0)
            farthest = torch.maximum(farthest, spread(self.loss, along).amax(dim=0))
            poison[:, :, rows] = weights.T[:, None] * self._poison(matrix, along, bent, rows)
        bound = self.of_the_worst(poison.numpy())
        remainder = self._remainder(directions, cubic, farthest).numpy()[:, None]
        return StepBound(bound, np.zeros_like(bound), remainder), Directions((curved,))

    def _tiles(self) -> Iterator[slice]:
        count = len(self.weights)
        return (slice(start, min(start + _TILE, count)) for start in range(0, count, _TILE))

    def _along(self, matrix: Tensor, rows: slice) -> Tensor:
        """``φ = C x̂``, (t, Q, K)."""
        along: Tensor = (self.inputs[rows] @ matrix.flatten(0, 1).T).unflatten(1, matrix.shape[:2])
        return along

    def _bent(self, along: Tensor, rows: slice) -> Tensor:
        """``ψ = Λφ``, (t, Q, K)."""
        curve, rank = (part[rows, None] for part in self.hessian)
        bent: Tensor = curve * along - rank * (rank * along).sum(dim=2, keepdim=True)
        return bent

    def _remainder(self, directions: Directions, cubic: Tensor, farthest: Tensor) -> Tensor:
        """``Σ_i w_i ⟨ρ_i, φ_i⟩``, sample by sample or by the norm of all curvatures together, (Q,).

        Reference:
            docs/theory.md, eq. (13.23).
        """
        rounded = (self.upward - 1) * 4 * float(self.analysis.jacobian_norm.max()) * directions.norms
        if not bool(self.third.any()):
            return torch.zeros_like(cubic)
        together = (farthest + rounded) * self.radius**2 * self.curvature_norm
        return self.upward * torch.minimum(cubic, together) / 2

    def _poison(self, matrix: Tensor, along: Tensor, bent: Tensor, rows: slice) -> Tensor:
        """What each sample adds under poison, before its weight, (Q, 2, t).

        Reference:
            docs/theory.md, eq. (13.24).
        """
        moves = self.label_moves
        if moves is None:
            return along.new_zeros(len(matrix), 2, len(along))
        labels = torch.stack([moves.support(sign * along, rows) for sign in (1.0, -1.0)]).permute(2, 0, 1)
        if self.features is None:
            return labels
        return labels + self._features(matrix, along, bent, rows)[:, None]

    def _features(self, matrix: Tensor, along: Tensor, bent: Tensor, rows: slice) -> Tensor:
        """What features add, together with labels, (Q, t)."""
        features, found = self.features, []
        assert features is not None
        here = features[rows]
        gradient, moved = self.gradient[rows], self.moved[rows]
        after = self.gradient_change[rows] + self.poisoned_slope[rows] + self.label_change[rows]
        sizes, steep = euclidean_norm(along, dim=2), euclidean_norm(bent, dim=2)
        for q, columns in enumerate(matrix[:, :, :-1]):
            line = here.sample_support(bent[:, q] @ self.layer.weight + gradient @ columns)
            effect = euclidean_norm(here.support(columns), dim=1)
            bend = sizes[:, q] * self.poisoned_bend[rows]
            found.append(line + steep[:, q] * self.radius * moved + bend + after * effect)
        return torch.stack(found)

    @override
    def roundings(self, rate: float, decay: float) -> StepRoundings:
        """As for one hidden layer, eq. (13.21), with magnitudes of ``Jc`` of at most ``‖x̂‖ + ‖Δx‖``."""
        samples, (outputs, inputs) = len(self.weights), self.layer.weight.shape
        gamma = REAL.own_relative(samples + inputs + outputs + 64)
        size, weights = self.upward * (self.analysis.jacobian_norm + self.widths), self.weights
        gradient_error = self.gradient_error
        rounded = gamma * hessian_size(self.loss, self.samples.outputs)
        curvature_error = self.upward * (self.third * self.still.roundoff.output_error + rounded)
        reach = 4 * self.radius * size + 4 * (self.layer.frobenius + self.radius) * self.widths
        curvature = self.poisoned_curvature
        third = third_derivative(self.loss, curvature)
        pull = self.gradient_norm + self.label_change + curvature * reach + third * reach.square()
        off = gamma * pull + gradient_error + curvature_error * reach
        products = size.square() * (gamma * curvature + curvature_error)
        direction = 8 * gamma * (1 + rate * decay) + 8 * rate * float(weights @ products)
        return StepRoundings(self.upward * _TERMS * float(weights @ (size * off)), self.upward * direction)
