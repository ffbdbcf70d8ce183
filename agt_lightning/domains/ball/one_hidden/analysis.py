"""The analysis of heads with one hidden layer, by exact secants of both layers."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor
from typing_extensions import override

from agt_lightning.domains.ball.analysis import BallAnalysis
from agt_lightning.domains.ball.layers import LayerBall
from agt_lightning.domains.ball.one_hidden.bounds import OneHiddenBounds
from agt_lightning.domains.ball.one_hidden.poison import OneHiddenEffect, feature_effect, mean_jacobian_error
from agt_lightning.domains.ball.one_hidden.remainder import curvature_norm, remainder
from agt_lightning.domains.ball.output_gradient import OutputGradient
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.step_data import Samples
from agt_lightning.domains.losses import Reach
from agt_lightning.interval import Interval


class OneHiddenAnalysis(BallAnalysis):
    """Two linear layers with a ReLU between: ``‖J̃‖ <= s + R ‖x̂‖`` and ``‖J̄‖ <= s + R/2 ‖x̂‖``.

    Here ``s = (‖ẑ‖² + ‖W₂ on active units‖² ‖x̂‖²)^½``.
    """

    def __init__(self, ball: LayerBall, samples: Samples, features: Perturbation | None = None) -> None:
        super().__init__(ball, samples, features)
        self.bounds = OneHiddenBounds(ball, samples, features)

    @property
    @override
    def outputs(self) -> Reach:
        return self.bounds.outputs

    @property
    @override
    def jacobian_norm(self) -> Tensor:
        return self.bounds.lipschitz + self.ball.radius * self.bounds.input_norm

    @property
    @override
    def mean_jacobian_norm(self) -> Tensor:
        return self.bounds.lipschitz + self.ball.radius / 2 * self.bounds.input_norm

    @cached_property
    @override
    def mean_jacobian_error(self) -> Tensor:
        return mean_jacobian_error(self.bounds)

    @property
    @override
    def output_magnitude(self) -> Tensor:
        return self.bounds.output_magnitude

    @property
    @override
    def jacobian_magnitude(self) -> Tensor:
        return self.bounds.lipschitz

    @property
    @override
    def roundings(self) -> int:
        return sum(self.bounds.first.weight.shape) + 4

    @override
    def curvature_norm(self, weights: Tensor) -> float:
        return curvature_norm(self.bounds, weights)

    @override
    def remainder(self, gradient: OutputGradient, weights: Tensor) -> tuple[float, float]:
        return remainder(self.bounds, gradient, weights)

    @override
    def feature_effect(self, features: Perturbation, poisoned_bounds: tuple[Interval, ...] | None) -> OneHiddenEffect:
        return feature_effect(self.bounds, None if poisoned_bounds is None else poisoned_bounds[0])
