"""The analysis of heads with one hidden layer, by exact secants of both layers."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor
from typing_extensions import override

from agt_lightning.domains.ball.one_hidden.bounds import OneHiddenBounds
from agt_lightning.domains.ball.one_hidden.magnitude import summed_magnitude
from agt_lightning.domains.ball.one_hidden.poison import OneHiddenEffect, feature_effect, mean_jacobian_error
from agt_lightning.domains.ball.one_hidden.remainder import curvature_norm, remainders
from agt_lightning.domains.ball.output_gradient import OutputGradient
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.remainder import Remainder
from agt_lightning.interval import Interval


class OneHiddenAnalysis(OneHiddenBounds):
    """Two linear layers with a ReLU between."""

    @cached_property
    @override
    def mean_jacobian_error(self) -> Tensor:
        return mean_jacobian_error(self)

    @override
    def summed_magnitude(self, gradient: OutputGradient, weights: Tensor) -> float:
        return summed_magnitude(self, gradient, weights)

    @override
    def curvature_norm(self, weights: Tensor) -> float:
        return curvature_norm(self, weights)

    @override
    def remainders(self, gradient: OutputGradient, weights: Tensor) -> tuple[Remainder, ...]:
        return remainders(self, gradient, weights)

    @override
    def feature_effect(self, features: Perturbation, poisoned_bounds: tuple[Interval, ...] | None) -> OneHiddenEffect:
        return feature_effect(self, None if poisoned_bounds is None else poisoned_bounds[0])
