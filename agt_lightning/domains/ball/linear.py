"""A linear head, ``f(x) = W x̂``: its loss is convex in the parameters, so that only rounding remains."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.analysis import BallAnalysis
from agt_lightning.domains.ball.layers import Layer
from agt_lightning.domains.ball.norms import append_one, gram_norm, with_one
from agt_lightning.domains.ball.output_gradient import OutputGradient
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.poison_bounds import JacobianEffect
from agt_lightning.domains.ball.remainder import Remainder
from agt_lightning.domains.ball.roundoff import HeadRoundoff, value_errors
from agt_lightning.domains.losses import OutputBounds
from agt_lightning.interval import Interval


class LinearAnalysis(BallAnalysis):
    """One linear layer: ``J = x̂`` at all parameters, and ``‖f̃ - f‖ <= R ‖x̂‖``."""

    @property
    def layer(self) -> Layer:
        """The only layer."""
        (layer,) = self.ball.layers
        return layer

    @cached_property
    def _input_norm(self) -> Tensor:
        """``‖x‖``, (b,)."""
        norm: Tensor = euclidean_norm(self.samples.inputs, dim=1)
        return norm

    @cached_property
    @override
    def outputs(self) -> OutputBounds:
        change = self.ball.radius * self.jacobian_norm + 2 * self.roundoff.output_error
        outward = 1 + self.ball.arithmetic.own_relative(self.roundings)
        return OutputBounds.around(self.samples.outputs, outward * change, self.samples.output_bounds)

    @cached_property
    @override
    def roundoff(self) -> HeadRoundoff:
        values = [self.jacobian_norm]
        errors = value_errors(self.ball, values, self.input_error)
        return HeadRoundoff(self.ball, values, errors, [torch.ones_like(self.jacobian_norm)])

    @cached_property
    @override
    def jacobian_norm(self) -> Tensor:
        return with_one(self._input_norm, self.layer.trains_bias)

    @property
    @override
    def mean_jacobian_error(self) -> Tensor:
        return torch.zeros_like(self.jacobian_norm)

    @override
    def summed_magnitude(self, gradient: OutputGradient, weights: Tensor) -> float:
        """``(|g| + a)(|x̂| + e)ᵀ`` with ``‖a‖ <= ‖Δg‖ + ‖fl(g) - g‖``; the first terms are summed before the norm."""
        inputs = append_one(self.samples.inputs.abs(), self.layer.trains_bias)
        nominal = (gradient.nominal.abs() * weights[:, None]).T @ inputs
        norm, error = self.jacobian_norm, self.input_error
        rest = (gradient.change + gradient.error) * (norm + error) + gradient.norm * error
        return float(euclidean_norm(nominal) + weights @ rest)

    @override
    def curvature_norm(self, weights: Tensor) -> float:
        return gram_norm(self.samples.inputs, weights, self.layer.trains_bias)

    @override
    def remainders(self, gradient: OutputGradient, weights: Tensor) -> tuple[Remainder, ...]:
        return (Remainder(),)

    @override
    def feature_effect(self, features: Perturbation, poisoned_bounds: tuple[Interval, ...] | None) -> JacobianEffect:
        """``ΔJ = Δx``, and ``‖W̃ Δx‖ <= ‖(sup |W_k Δx|)_k‖ + R ‖Δx‖``."""
        norm = features.norm().expand_as(self.jacobian_norm)
        output = euclidean_norm(features.support(self.layer.weight), dim=1) + self.ball.radius * norm
        return JacobianEffect(output, norm, self.jacobian_norm)
