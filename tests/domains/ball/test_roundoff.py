"""Bounds on the rounding of values and gradients against values in single precision, in several orders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains.ball import value_bounds
from agt_lightning.domains.ball.layers import Layer, LayerBall
from agt_lightning.domains.ball.linear import LinearAnalysis
from agt_lightning.domains.ball.one_hidden import OneHiddenAnalysis
from agt_lightning.domains.ball.value_bounds import layer_bounds, margin_bounds
from agt_lightning.interval import Interval
from tests.domains.ball.attacks import slope
from tests.domains.ball.problems import Form, Problems, random_problems

SINGLE = Arithmetic(torch.float32, torch.float64)


def ball_of(problems: Problems, g: int) -> LayerBall:
    second = Layer(problems.second[g], problems.second_bias[g], problems.form.trains_second)
    first = Layer(problems.first[g], problems.first_bias[g], problems.form.trains_first)
    return LayerBall((first, second) if problems.form.hidden else (second,), float(problems.radius[g]))


def moved(ball: LayerBall, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases somewhere on the ball's surface."""
    shifts = [
        torch.randn(layer.weight.shape[0], layer.weight.shape[1] + 1, generator=generator).double()
        for layer in ball.layers
    ]
    for layer, shift in zip(ball.layers, shifts, strict=True):
        shift[:, -1] *= layer.trains_bias
    size = torch.cat([shift.flatten() for shift in shifts]).norm() / (ball.radius * (1 - 1e-12))
    pairs = zip(ball.layers, shifts, strict=True)
    return [(layer.weight + shift[:, :-1] / size, layer.bias + shift[:, -1] / size) for layer, shift in pairs]


@pytest.mark.parametrize("hidden", [False, True], ids=["linear", "hidden"])
@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_magnitudes_are_summed_over_the_ball(loss, hidden):
    generator = torch.Generator().manual_seed(1)
    form = Form(loss, None, None, hidden=hidden)
    problems = random_problems(form, 40, 2, 4, 3, 6, 0, generator)
    shares = []
    for g in range(len(problems)):
        ball, x, w = ball_of(problems, g), problems.inputs[g], problems.weights[g]
        analysis = (OneHiddenAnalysis if hidden else LinearAnalysis)(ball, problems.samples(g))
        bound = analysis.summed_magnitude(analysis.output_gradient(form.head_loss, problems.target(g)), w)
        for _ in range(10 if ball.radius > 0 else 0):
            *first, (weight, bias) = moved(ball, generator)
            values = (x @ first[0][0].T + first[0][1]).clamp(min=0) if hidden else x
            signal = slope(form, values @ weight.T + bias, problems.targets[g])
            parts = [(w[:, None] * signal).abs().T @ with_one(values)]
            if hidden:
                parts.append((w[:, None] * (signal @ weight) * (values > 0)).abs().T @ with_one(x))
            reached = float(torch.cat([part.flatten() for part in parts]).norm())
            assert reached <= bound * (1 + 1e-12)
            shares.append(reached / bound)
    assert max(shares) > 0.5


def with_one(values: Tensor) -> Tensor:
    return torch.cat([values.abs(), values.new_ones(len(values), 1)], dim=1)


def cancelling_head() -> tuple[LayerBall, Interval]:
    """Large terms that cancel, in both layers; the ball is a point."""
    first = Layer(torch.tensor([[1e4, 0.3, -1e4], [1e4, 0.2, -1e4]]).double(), torch.tensor([0.5, 0.25]).double(), True)
    second = Layer(torch.tensor([[1e3, -1e3], [0.1, 0.1]]).double(), torch.tensor([0.125, 0.5]).double(), True)
    x = torch.rand(50, 1, generator=torch.Generator().manual_seed(0)).expand(50, 3)
    return LayerBall((first, second), 0.0, SINGLE), Interval.point(x.double())


def executions(ball: LayerBall, x: Tensor) -> list[list[Tensor]]:
    """Results of both layers in single precision, by orders of the three terms."""
    runs = []
    for order in ([0, 1, 2], [0, 2, 1], [1, 2, 0]):
        results, values = [], x.float()
        for layer in ball.layers:
            total = torch.zeros(len(x), len(layer.weight))
            for k in [k for k in order if k < values.shape[1]]:
                total = total + values[:, k, None] * layer.weight[:, k].float()
            results.append(total + layer.bias.float())
            values = results[-1].clamp(min=0)
        runs.append(results)
    return runs


def violations(ball: LayerBall, inputs: Interval) -> int:
    """Number of float results and margins outside their bounds."""
    boxes, outside = layer_bounds(ball, inputs), 0
    margins = margin_bounds(ball, inputs, torch.zeros(len(inputs.lower), dtype=torch.long))
    for results in executions(ball, inputs.lower):
        for box, result in zip(boxes, results, strict=True):
            outside += int(((result.double() < box.lower) | (result.double() > box.upper)).sum())
        margin = results[-1][:, 0].double() - results[-1][:, 1].double()
        outside += int(((margin < margins.lower[:, 1]) | (margin > margins.upper[:, 1])).sum())
    return outside


def test_values_and_margins_of_runs_are_inside_their_bounds():
    assert violations(*cancelling_head()) == 0


def test_values_of_runs_leave_bounds_for_real_arithmetic(monkeypatch):
    ball, inputs = cancelling_head()
    monkeypatch.setattr(
        value_bounds, "row_errors", lambda ball, layer, norm, _: torch.zeros(len(norm), len(layer.weight)).double()
    )
    assert violations(ball, inputs) > 10
