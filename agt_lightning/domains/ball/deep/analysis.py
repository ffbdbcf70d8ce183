"""The analysis of heads of any depth: bounds of values forward and of derivatives backward, sample by sample."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor
from typing_extensions import override

from agt_lightning.domains.ball.analysis import BallAnalysis
from agt_lightning.domains.ball.deep.bounds import DeepBounds
from agt_lightning.domains.ball.deep.jacobian_change import mean_jacobian_errors
from agt_lightning.domains.ball.deep.poison import feature_effect
from agt_lightning.domains.ball.deep.remainder import curvature_norm, remainder
from agt_lightning.domains.ball.layers import LayerBall
from agt_lightning.domains.ball.output_gradient import OutputGradient
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.poison_bounds import JacobianEffect
from agt_lightning.domains.ball.step_data import Samples
from agt_lightning.domains.losses import Reach
from agt_lightning.interval import Interval


class DeepAnalysis(BallAnalysis):
    """Any number of linear layers with ReLUs between: ``‖J̃‖² <= Σ_l ‖B̃_l‖² ‖ẑ̃_l‖²``, and the same for ``‖J̄‖``."""

    def __init__(self, ball: LayerBall, samples: Samples, features: Perturbation | None = None) -> None:
        super().__init__(ball, samples, features)
        self.bounds = DeepBounds(ball, samples)

    @property
    @override
    def outputs(self) -> Reach:
        return self.bounds.outputs

    @property
    @override
    def jacobian_norm(self) -> Tensor:
        return self.bounds.jacobian_norm

    @cached_property
    def _mean_jacobian_errors(self) -> Tensor:
        return mean_jacobian_errors(self.bounds)

    @property
    @override
    def mean_jacobian_error(self) -> Tensor:
        error: Tensor = self._mean_jacobian_errors.norm(dim=0)
        return error

    @property
    @override
    def output_magnitude(self) -> Tensor:
        return self.bounds.magnitudes[-1]

    @property
    @override
    def jacobian_magnitude(self) -> Tensor:
        return self.bounds.jacobian_magnitude

    @property
    @override
    def roundings(self) -> int:
        return self.bounds.roundings

    @override
    def curvature_norm(self, weights: Tensor) -> float:
        return curvature_norm(self.bounds, weights)

    @override
    def remainder(self, gradient: OutputGradient, weights: Tensor) -> tuple[float, float]:
        return remainder(self.bounds, self._mean_jacobian_errors, gradient, weights)

    @override
    def feature_effect(self, features: Perturbation, poisoned_bounds: tuple[Interval, ...] | None) -> JacobianEffect:
        return feature_effect(self.bounds, features, poisoned_bounds)
