"""The analysis of heads of any depth: bounds of values forward and of derivatives backward, sample by sample."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.domains.ball.deep.bounds import DeepBounds
from agt_lightning.domains.ball.deep.jacobian_change import mean_jacobian_errors
from agt_lightning.domains.ball.deep.poison import feature_effect
from agt_lightning.domains.ball.deep.remainder import curvature_norm, remainder
from agt_lightning.domains.ball.output_gradient import OutputGradient
from agt_lightning.domains.ball.perturbation import Perturbation
from agt_lightning.domains.ball.poison_bounds import JacobianEffect
from agt_lightning.domains.ball.remainder import Remainder
from agt_lightning.interval import Interval


class DeepAnalysis(DeepBounds):
    """Any number of linear layers with ReLUs between."""

    @cached_property
    def _mean_jacobian_errors(self) -> Tensor:
        return mean_jacobian_errors(self)

    @property
    @override
    def mean_jacobian_error(self) -> Tensor:
        error: Tensor = euclidean_norm(self._mean_jacobian_errors, dim=0)
        return error

    @override
    def curvature_norm(self, weights: Tensor) -> float:
        return curvature_norm(self, weights)

    @override
    def remainders(self, gradient: OutputGradient, weights: Tensor) -> tuple[Remainder, ...]:
        return (remainder(self, self._mean_jacobian_errors, gradient, weights),)

    @override
    def feature_effect(self, features: Perturbation, poisoned_bounds: tuple[Interval, ...] | None) -> JacobianEffect:
        return feature_effect(self, features, poisoned_bounds)
