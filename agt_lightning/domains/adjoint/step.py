"""One step of a recorded training at its nominal parameters: what its poison can add along any direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.arithmetic.compiled import Array as Values
from agt_lightning.domains.adjoint.curvature import third_derivative
from agt_lightning.domains.adjoint.directions import Directions, hidden_values
from agt_lightning.domains.adjoint.label_moves import LabelMoves
from agt_lightning.domains.ball.analysis import BallAnalysis
from agt_lightning.domains.ball.layers import REAL, LayerBall
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.step_data import Samples, StepData
from agt_lightning.domains.losses import HeadLoss


@dataclass(frozen=True)
class StepBound:
    """Upper bounds on ``s c · (r + p)`` for s = +1 and -1, and their parts, each (Q, 2).

    Args:
        poison: of the n worst samples.
        switches: jumps and slips of units, at first order in the movement.
        quadratic: everything of second order and more.
    """

    poison: Values
    switches: Values
    quadratic: Values

    @property
    def total(self) -> Values:
        """The sum."""
        result: Values = self.poison + self.switches + self.quadratic
        return result


@dataclass(frozen=True)
class StepRoundings:
    """What rounding can change, for a direction of norm one.

    Args:
        bound: of the step's bound, before the factor α.
        direction: ``‖ε_t‖``.
    """

    bound: float
    direction: float


@dataclass(frozen=True, eq=False)
class StepAnalysis(ABC):
    """One step at its nominal parameters; a subclass for each depth of the head states what differs.

    Everything that is a bound is rounded upward.

    Args:
        ball: the layers, R before the step, and the roundings of runs; bounds are computed in float64.
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

    @abstractmethod
    def prepare(self) -> None:
        """Compute what all threads read."""

    @abstractmethod
    def back(self, directions: Directions) -> tuple[StepBound, Directions]:
        """Bound what the step adds along directions c after it, and return ``Hc`` too."""

    @abstractmethod
    def roundings(self, rate: float, decay: float) -> StepRoundings:
        """Bound the roundings of the step.

        Args:
            rate: α.
            decay: μ.
        """

    @property
    @abstractmethod
    def analysis(self) -> BallAnalysis:
        """The ball's bounds on outputs and loss."""

    @property
    def radius(self) -> float:
        """R before the step."""
        return self.ball.radius

    @cached_property
    def samples(self) -> Samples:
        """The samples, with the values of all layers."""
        given, results = self.data.samples, list[Tensor]()
        for layer in self.ball.layers:
            results.append(hidden_values(layer, results[-1].clamp(min=0) if results else given.inputs))
        return Samples(given.inputs, tuple(results), None, given.input_error, given.target_error)

    @cached_property
    def inputs(self) -> Tensor:
        """x̂, (b, d + 1)."""
        return torch.nn.functional.pad(
            self.data.samples.inputs, (0, 1), value=float(self.ball.layers[0].trains_bias)
        ).contiguous()

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
    def label_moves(self) -> LabelMoves | None:
        """What labels can add to the gradient of each sample; None if nobody can be poisoned."""
        if self.data.poison is None:
            return None
        return LabelMoves.of(self.data.poison, self.loss, self.upward, self.gradient.shape)

    @cached_property
    def label_change(self) -> Tensor:
        """``‖q‖``, (b,); zero for samples that cannot be poisoned."""
        return torch.zeros_like(self.weights) if self.label_moves is None else self.label_moves.largest

    @cached_property
    def upward(self) -> float:
        """Above the rounding of sums and products of numbers that are not negative."""
        return 1 + self.ball.arithmetic.own_relative(self.data.own_roundings + self.analysis.roundings)

    @cached_property
    def gradient(self) -> Tensor:
        """g, (b, K)."""
        return self.loss.gradient(self.samples.outputs, self.data.target)

    @cached_property
    def still(self) -> BallAnalysis:
        """The nominal parameters alone, in real arithmetic: its errors are those of the computation here."""
        return type(self.analysis)(LayerBall(self.ball.layers, 0.0, REAL), self.samples)

    @cached_property
    def gradient_error(self) -> Tensor:
        """Upper bound on the error of g as it is computed here, (b,).

        Roundings of runs are not part of it: they are what `RecordedStep.rounding` adds to a step in real arithmetic.
        """
        return self.upward * self.still.output_gradient(self.loss, self.data.target).error

    @cached_property
    def gradient_change(self) -> Tensor:
        """Γ, upper bound on ``‖g̃ - g‖``, (b,)."""
        change = self.loss.gradient_change(self.analysis.outputs, self.data.target)
        return self.upward * (change + self.gradient_error)

    @cached_property
    def gradient_norm(self) -> Tensor:
        """``‖g‖``, (b,)."""
        norm: Tensor = euclidean_norm(self.gradient, dim=1)
        return self.upward * (norm + self.gradient_error)

    @cached_property
    def curvature(self) -> Tensor:
        """λ, (b,)."""
        return self.upward * self.loss.curvature(self.analysis.outputs, self.data.target)[1]

    @cached_property
    def curvature_norm(self) -> float:
        """Upper bound on ``‖Σ_i w_i λ_i J̄_iᵀJ̄_i‖``."""
        return self.upward * self.analysis.curvature_norm(self.weights * self.curvature)

    @cached_property
    def third(self) -> Tensor:
        """Upper bound on the third derivative of the loss in the ball, (b,)."""
        return third_derivative(self.loss, self.curvature)

    @cached_property
    def output_change(self) -> Tensor:
        """D, upper bound on ``‖f̃ - f‖``, (b,)."""
        return self.upward * self.analysis.outputs.radius

    @cached_property
    def moved(self) -> Tensor:
        """ρ₂ = ``‖Δx‖``, (b,)."""
        assert self.features is not None
        return (self.upward * self.features.norm()).expand(len(self.weights))

    @property
    @abstractmethod
    def feature_change(self) -> Tensor:
        """F, upper bound on ``‖f(x̃) - f(x)‖`` anywhere in the ball, (b,)."""

    @cached_property
    def poisoned_curvature(self) -> Tensor:
        """Upper bound on ``‖∂²ℓ/∂f²‖`` over all outputs that poison can lead to, (b,)."""
        if self.features is None:
            return self.curvature
        grown = self.analysis.outputs.grown(self.feature_change)
        return self.upward * self.loss.curvature(grown, self.data.target)[1]

    @cached_property
    def poisoned_slope(self) -> Tensor:
        """``λ'F``, how far poisoned features move g, (b,)."""
        return self.upward * self.poisoned_curvature * self.feature_change

    @cached_property
    def poisoned_bend(self) -> Tensor:
        """``ℓ₃'(D + F/2)F``, how far that is from ``Λ`` times the change of f, (b,)."""
        third, change = third_derivative(self.loss, self.poisoned_curvature), self.feature_change
        return self.upward * third * (self.output_change + change / 2) * change

    @cached_property
    def widths(self) -> Tensor:
        """Norm of the half-widths of the box of features, (b,)."""
        if self.features is None:
            return torch.zeros_like(self.weights)
        norms: Tensor = euclidean_norm(self.features.half_widths, dim=1)
        return norms.expand(len(self.weights)) * self.upward

    def of_the_worst(self, poison: Values) -> Values:
        """Return the sum of the n largest, (Q, 2), of what each sample adds, (Q, 2, b)."""
        given = self.data.poison
        if given is None or given.n == 0:
            return np.zeros(poison.shape[:2])
        values = poison if given.covers(poison.shape[2]) else poison[:, :, given.rows.numpy()]
        count, n = values.shape[2], min(given.n, values.shape[2])
        largest: Values = np.partition(values, count - n, axis=2)[:, :, count - n :].sum(axis=2)
        return largest
