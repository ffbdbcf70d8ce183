"""Values of a head, and differences of its outputs, stay within their bounds for all parameters and inputs attacked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agt_lightning.domains.ball.layers import Layer, LayerBall
from agt_lightning.domains.ball.value_bounds import layer_bounds, margin_bounds
from agt_lightning.interval import Interval

ROUNDING = 1e-9
"""Relative to the size of the values; far above float64 rounding of these products."""

ATTACKS = 16
"""For each output and each sign."""


class Head:
    """One or two layers, a ball, and a box of inputs."""

    def __init__(self, seed: int, hidden: bool, radius: float, width: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.generator, self.radius = generator, radius
        d, h, k, samples = 1 + seed % 4, 1 + seed % 5, 2 + seed % 3, 5
        sizes = [(h, d), (k, h)] if hidden else [(k, d)]
        self.layers = [
            Layer(
                self.noise(o, i),
                self.noise(o) if (seed + number) % 3 else None,
                trains_bias=bool((seed + number) % 3 == 1),
            )
            for number, (o, i) in enumerate(sizes)
        ]
        center = self.noise(samples, d)
        half = width * torch.rand(samples, d, generator=generator).double()
        self.inputs = Interval(center - half, center + half)
        self.k, self.samples = k, samples

    @property
    def ball(self) -> LayerBall:
        """The layers and the ball."""
        return LayerBall(tuple(self.layers), self.radius)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def results(self, movement: list[Tensor], inputs: Tensor) -> list[Tensor]:
        """Results of all layers; the movement is one tensor (a, o, i + 1) for each."""
        values, results = inputs, []
        for number, (layer, move) in enumerate(zip(self.layers, movement, strict=True)):
            values = values.clamp(min=0) if number else values
            bias = 0 if layer.bias is None else layer.bias
            offset = bias + (move[:, :, -1] if layer.trains_bias else 0)
            values = (values[:, None] @ (layer.weight + move[:, :, :-1]).mT).squeeze(1) + offset
            results.append(values)
        return results

    def attack(self, goal_of, steps: int = 30) -> Tensor:
        """Largest goal, (samples,), over the ball and the box, by ascent from random starts."""
        rows = torch.arange(self.samples).repeat_interleave(ATTACKS)
        movement = [self.noise(len(rows), *layer.weight.shape) for layer in self.layers]
        movement = [torch.cat([m, self.noise(len(rows), m.shape[1], 1)], dim=2) for m in movement]
        for layer, move in zip(self.layers, movement, strict=True):
            move[..., -1] *= layer.trains_bias
        movement = self.inside(movement)
        lower, upper = self.inputs.lower[rows], self.inputs.upper[rows]
        inputs = torch.where(torch.rand(lower.shape, generator=self.generator) < 0.5, lower, upper)
        best = torch.full((len(rows),), -torch.inf, dtype=torch.float64)
        for step in range(steps):
            variables = [*(m.detach().requires_grad_() for m in movement), inputs.detach().requires_grad_()]
            goal = goal_of(self.results(variables[:-1], variables[-1]))
            best = torch.maximum(best, goal.detach())
            slopes = torch.autograd.grad(goal.sum(), variables, allow_unused=True)
            slopes = [torch.zeros_like(v) if s is None else s for v, s in zip(variables, slopes, strict=True)]
            # The maximum of a linear function on the ball is at its boundary: go there at once, later by less.
            share = 1.0 if step % 2 else 1.5 * (1 - step / steps)
            ups = slopes[:-1]
            size = torch.cat([u.flatten(1) for u in ups], dim=1).norm(dim=1).clamp(min=1e-300)[:, None, None]
            movement = self.inside([m + share * self.radius * u / size for m, u in zip(movement, ups, strict=True)])
            with torch.no_grad():
                flip = slopes[-1].sign() * (upper - lower) * (1.0 if step % 3 == 0 else 0.2)
                inputs = torch.minimum(torch.maximum(inputs.detach() + flip, lower), upper)
        return best.reshape(self.samples, ATTACKS).amax(dim=1)

    def inside(self, movement: list[Tensor]) -> list[Tensor]:
        movement = [
            torch.cat([m[..., :-1], m[..., -1:] * layer.trains_bias], dim=2).detach()
            for layer, m in zip(self.layers, movement, strict=True)
        ]
        size = torch.cat([m.flatten(1) for m in movement], dim=1).norm(dim=1).clamp(min=1e-300)
        return [m * (self.radius / size).clamp(max=1)[:, None, None] for m in movement]


CASES = [
    pytest.param(seed, hidden, radius, width, id=f"{seed}-{'hidden' if hidden else 'linear'}-{radius}-{width}")
    for hidden in (False, True)
    for seed, (radius, width) in enumerate([(0.01, 0.0), (0.1, 0.2), (1.0, 0.0), (0.5, 1.0), (5.0, 0.3), (0.0, 0.5)])
]


@pytest.mark.parametrize(("seed", "hidden", "radius", "width"), CASES)
def test_layer_bounds_contain_every_value(seed, hidden, radius, width):
    head = Head(seed, hidden, radius, width)
    for number, box in enumerate(layer_bounds(head.ball, head.inputs)):
        scale = 1 + float(box.magnitude.max())
        for output in range(box.shape[1]):
            highest = head.attack(lambda results, n=number, o=output: results[n][:, o])
            lowest = -head.attack(lambda results, n=number, o=output: -results[n][:, o])
            assert float((highest - box.upper[:, output]).max()) <= ROUNDING * scale
            assert float((box.lower[:, output] - lowest).max()) <= ROUNDING * scale
            if not hidden or number == 0:  # exact but for the rounding, and for a box whose corners have several norms
                exact = (box.upper[:, output] - highest).max() if width == 0 else 0.0
                assert float(exact) <= 1e-6 * scale


@pytest.mark.parametrize(("seed", "hidden", "radius", "width"), CASES)
def test_margins_contain_every_difference(seed, hidden, radius, width):
    head = Head(seed, hidden, radius, width)
    target = torch.randint(0, head.k, (head.samples,), generator=head.generator)
    box = margin_bounds(head.ball, head.inputs, target)
    own = torch.nn.functional.one_hot(target, head.k).bool()
    assert bool((box.lower[own] == 0).all())
    assert bool((box.upper[own] == 0).all())
    rows = target.repeat_interleave(ATTACKS)[:, None]
    scale = 1 + float(box.magnitude.max())
    for output in range(head.k):

        def margin(results: list[Tensor], other: int = output) -> Tensor:
            return results[-1].gather(1, rows).squeeze(1) - results[-1][:, other]

        assert float((head.attack(margin) - box.upper[:, output]).max()) <= ROUNDING * scale
        lowest = -head.attack(lambda results, margin=margin: -margin(results))
        assert float((box.lower[:, output] - lowest).max()) <= ROUNDING * scale


@pytest.mark.parametrize("hidden", [False, True])
def test_margins_are_nearly_attained(hidden):
    """Two rows of the last weight that move against each other reach √2 times what one row reaches."""
    head = Head(4, hidden, 1e-3, 0.0)
    target = torch.zeros(head.samples, dtype=torch.long)
    box = margin_bounds(head.ball, head.inputs, target)
    reached = head.attack(lambda results: results[-1][:, 0] - results[-1][:, 1])
    still = [torch.zeros(1, len(layer.weight), layer.weight.shape[1] + 1) for layer in head.layers]
    outputs = head.results(still, head.inputs.lower)[-1]
    nominal = outputs[:, 0] - outputs[:, 1]
    share = (reached - nominal) / (box.upper[:, 1] - nominal)
    assert float(share.max()) > 0.99


def test_margins_are_tighter_than_differences_of_bounds():
    head = Head(2, True, 0.1, 0.1)
    target = torch.zeros(head.samples, dtype=torch.long)
    box = margin_bounds(head.ball, head.inputs, target)
    outputs = layer_bounds(head.ball, head.inputs)[-1]
    apart = outputs.upper[:, :1] - outputs.lower
    assert bool((box.upper[:, 1:] <= apart[:, 1:]).all())
