"""Single steps of one linear layer, and attacks on them."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.domains.adjoint.directions import Directions
from agt_lightning.domains.adjoint.linear import LinearStep
from agt_lightning.domains.ball.layers import REAL, Layer, LayerBall
from tests.domains.adjoint.one_step import Attack
from tests.domains.adjoint.problems import F64, Problem


class LinearProblem(Problem):
    """One step of one linear layer; the form's units count for nothing."""

    @cached_property
    @override
    def layers(self) -> tuple[Layer]:
        weight = self.form.second_scale * self.noise(self.outputs, self.form.features)
        return (Layer(weight, 0.3 * self.noise(self.outputs), self.form.biases[0]),)

    @cached_property
    @override
    def geometry(self) -> LinearStep:
        return LinearStep(LayerBall(self.layers, self.radius, REAL), self.step_data, self.weights, self.loss)

    @override
    def directions(self, count: int) -> Directions:
        """Gradients of outputs at random points, and random directions."""
        found = Directions.of_outputs(
            self.layers, self.noise(count, self.form.features), self.noise(count, self.outputs)
        ).first
        found[::2] = self.noise(*found[::2].shape)
        found[:, :, -1] *= self.form.biases[0]
        return Directions((found,))

    @property
    @override
    def nominal(self) -> Tensor:
        (layer,) = self.layers
        return torch.cat([layer.weight, layer.bias[:, None]], dim=1).flatten()

    @cached_property
    @override
    def trained(self) -> Tensor:
        trained = torch.ones(self.outputs, self.form.features + 1, dtype=F64)
        trained[:, -1] = float(self.form.biases[0])
        return trained.flatten()

    @override
    def outputs_of(self, vector: Tensor, inputs: Tensor) -> Tensor:
        matrix = vector.unflatten(-1, (self.outputs, self.form.features + 1))
        return inputs @ matrix[:, :-1].T + matrix[:, -1]


class LinearAttack(Attack):
    """An attack on one linear layer."""

    @override
    def movements(self) -> Tensor:
        """Starts: random, along one sample, along the direction itself; some inside the ball."""
        problem = self.problem
        start = self.noise(self.count, problem.outputs, problem.form.features + 1)
        which = torch.randint(0, len(problem.inputs), (self.count,), generator=self.generator)
        start[1::3] = start[1::3, :, :1] * problem.geometry.inputs[which[1::3], None]
        start = start.flatten(1)
        start[2::3] = self.direction * torch.sign(start[2::3, :1])
        start = start * problem.trained
        size = torch.rand(self.count, 1, dtype=F64, generator=self.generator)
        size[::2] = 1.0
        return start / start.norm(dim=1, keepdim=True).clamp(min=1e-300) * problem.radius * size
