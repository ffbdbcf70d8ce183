"""Single steps of small networks with one output or two classes, and a box around their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agt_lightning.domains.adjoint.boxed.geometry import BoxedGeometry
from agt_lightning.domains.adjoint.boxed.head_box import HeadBox, ScalarHead, basis_of, norm_of
from agt_lightning.domains.adjoint.boxed.replay import BoxedStep, ScalarDirections
from tests.domains.adjoint.one_step import Attack
from tests.domains.adjoint.problems import F64, Form, Problem, flat


@dataclass(frozen=True)
class BoxedProblem:
    """One step of one network, its parameters in a box of half-widths of about ``width``."""

    form: Form
    seed: int
    width: float
    epsilon: float = 0.05
    turned: float = 1.5  # limit on ``W Q``, relative to half-widths; infinity without one
    last: float = 1.0  # factor of the half-widths of the last layer

    @cached_property
    def widths(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 11)
        form, outputs = self.form, Problem(self.form, self.seed, 0.0).outputs
        shapes = [(form.units, form.features), (form.units,), (outputs, form.units), (outputs,)]
        drawn = [self.width * (0.2 + torch.rand(shape, dtype=F64, generator=generator)) for shape in shapes]
        return drawn[0], drawn[1] * form.biases[0], self.last * drawn[2], self.last * drawn[3] * form.biases[1]

    @cached_property
    def problem(self) -> Problem:
        """The same with a ball around the box."""
        return Problem(self.form, self.seed, norm_of(self.widths), self.epsilon)

    @cached_property
    def basis(self) -> Tensor:
        return basis_of(torch.nn.functional.pad(self.problem.inputs, (0, 1), value=1.0))

    @cached_property
    def rotated(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 12)
        shape = (self.form.units, self.form.features + 1)
        return self.turned * self.width * torch.rand(shape, dtype=F64, generator=generator)

    @cached_property
    def step(self) -> BoxedStep:
        head = ScalarHead.of(self.problem.layers)
        box = HeadBox.of(head, self.widths, self.basis)
        box = box.cut(self.rotated, torch.full_like(box.second, torch.inf))
        return BoxedStep(BoxedGeometry(self.problem.geometry, head, box), 1.0, 0.0, 0.0)

    def directions(self, count: int) -> ScalarDirections:
        """Directions in the head of one output."""
        drawn = self.problem.directions(count)
        return ScalarDirections(drawn.first, drawn.second[:, -1])

    def whole(self, directions: ScalarDirections, q: int) -> Tensor:
        """A direction in all parameters: that of a difference pulls both outputs."""
        last = directions.second[q][None]
        return flat(directions.first[q], torch.cat([-last, last]) if self.problem.outputs == 2 else last)


class BoxAttack(Attack):
    """Movements in a box, often in its corners."""

    def __init__(self, boxed: BoxedProblem, direction: Tensor, sign: float, count: int = 48, poisons: bool = True):
        super().__init__(boxed.problem, direction, sign, count, poisons)
        weight, bias, last, last_bias = boxed.widths
        self.widths = flat(torch.cat([weight, bias[:, None]], 1), torch.cat([last, last_bias[:, None]], 1))
        self.boxed = boxed

    def movements(self) -> Tensor:
        start = super().movements()
        corners = self.widths * torch.sign(self.noise(*start.shape))
        far = torch.rand(len(start), 1, dtype=F64, generator=self.generator) < 0.5
        return self.inside(torch.where(far, corners, 8 * start))

    def inside(self, movement: Tensor) -> Tensor:
        movement = torch.maximum(torch.minimum(movement, self.widths), -self.widths)
        first, second = self.problem.split(movement)
        turned = (first @ self.boxed.basis).abs()
        share = (self.boxed.rotated / turned.clamp(min=1e-300)).clamp(max=1).amin(dim=2, keepdim=True)
        return flat(first * share * (1 - 1e-12), second)
