"""Functions that take several calls: where they are found, exact over intervals, and right in floating point."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture import capture, reached
from agt_lightning.interval import Interval
from agt_lightning.propagation import Program, propagate_backward, propagate_forward
from agt_lightning.rules import RULES
from agt_lightning.rules.composite import Composite, FunctionOfQuadratic, LogSigmoid, Swish

Function = Callable[[Tensor], Tensor]

WRITTEN: dict[str, tuple[Composite, Function]] = {
    "charbonnier": (FunctionOfQuadratic(1.0, 0.1, 1.0, 0.5), lambda x: torch.sqrt(x.square() + 0.1)),
    "pseudo-huber": (FunctionOfQuadratic(4.0, 1.0, 1.0, 0.5), lambda x: torch.sqrt(1 + 4 * x**2)),
    "cauchy": (FunctionOfQuadratic(0.5, 2.0, 2.0, 1.0), lambda x: torch.log(2 + x * x / 2)),
    "reciprocal": (FunctionOfQuadratic(3.0, 0.7, -2.0, 2.0), lambda x: torch.reciprocal(x.square() * 3 + 0.7)),
    "one over": (FunctionOfQuadratic(1.0, 1.5, -2.0, 2.0), lambda x: 1 / (x.pow(2) - 0.5 + 2)),
    "reciprocal root": (FunctionOfQuadratic(1.0, 0.25, -1.0, 1.5), lambda x: torch.rsqrt(x.square() + 0.25)),
    "swish": (Swish(), lambda x: x * torch.sigmoid(x)),
    "swish, other order": (Swish(), lambda x: torch.sigmoid(x) * x),
    "log sigmoid": (LogSigmoid(1), lambda x: torch.log(torch.sigmoid(x))),
    "log of one minus sigmoid": (LogSigmoid(-1), lambda x: torch.log(1 - torch.sigmoid(x))),
}
"""What is found, and how it is written."""


class Shifted(nn.Module):
    """A function of ``x + w``, whose gradient with respect to w is the function's derivative."""

    def __init__(self, function: Function, dtype: torch.dtype) -> None:
        super().__init__()
        self.w, self.function = nn.Parameter(torch.zeros(1, dtype=dtype)), function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x + self.w)


def _program(function: Function, dtype: torch.dtype = torch.float64) -> Program:
    module = Shifted(function, dtype)
    graph = capture(module, lambda leaves: module(leaves[0]), [torch.ones(4, 1, dtype=dtype)])
    samples, trainable = reached(graph, set(graph.leaves)), reached(graph, set(graph.parameters))
    return Program.build(graph, RULES, samples=samples, trainable=trainable)


def _bounds(program: Program, x: Interval, grad: float = 1.0) -> tuple[Interval, Interval]:
    """Return bounds on values and on gradients over intervals of x, (samples, 1), from a gradient of the values."""
    inputs = dict.fromkeys(program.graph.leaves, x)
    inputs |= {name: Interval.point(torch.zeros(1, dtype=x.dtype)) for name in program.graph.parameters}
    values = propagate_forward(program, inputs)
    seed = Interval.point(torch.full_like(x.lower, grad))
    (factors,) = propagate_backward(program, values, {program.graph.output: seed}).values()
    result = values[program.graph.output]
    assert isinstance(result, Interval)
    return result, factors.block(0, factors.elements).mapped(lambda bound: bound.reshape(-1, 1))


def _intervals(count: int, largest: float = 3.0) -> Interval:
    generator = torch.Generator().manual_seed(count)
    ends = (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 2 - 1) * largest
    return Interval(ends.amin(dim=1, keepdim=True), ends.amax(dim=1, keepdim=True))


@pytest.mark.parametrize("name", WRITTEN)
def test_found_and_exact(name: str) -> None:
    expected, function = WRITTEN[name]
    program = _program(function)
    (found,) = program.composites.values()
    assert found.function == expected
    x = _intervals(200)
    result, slope = _bounds(program, x)
    points = (x.lower + torch.linspace(0, 1, 2001, dtype=torch.float64) * x.width).requires_grad_()
    values = function(points)
    (slopes,) = torch.autograd.grad(values.sum(), points)
    for bounds, sampled in ((result, values.detach()), (slope, slopes)):
        least, most = sampled.amin(dim=1, keepdim=True), sampled.amax(dim=1, keepdim=True)
        assert (bounds.lower <= least + 1e-12).all()
        assert (bounds.upper >= most - 1e-12).all()
        torch.testing.assert_close(bounds.lower, least, atol=2e-4, rtol=0)
        torch.testing.assert_close(bounds.upper, most, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: _read_twice(x.square() + 0.1), id="sum read elsewhere"),
        pytest.param(lambda x: torch.sqrt(x.square().float() + 0.1), id="two types"),
        pytest.param(lambda x: torch.sqrt(x.square().detach() + 0.1) + x, id="detached"),
        pytest.param(lambda x: torch.sqrt(x * x.flip(1) + 10), id="product with another view"),
        pytest.param(lambda x: torch.sqrt(4 - 0.3 * x.square()), id="falling quadratic"),
        pytest.param(lambda x: torch.log(2 - torch.sigmoid(x)), id="two minus sigmoid"),
        pytest.param(lambda x: (0.5 * x) * torch.sigmoid(x), id="sigmoid of another multiple"),
    ],
)
def test_what_is_not_one_function_is_bounded_call_by_call(function: Function) -> None:
    program = _program(function)
    assert not program.composites
    x = _intervals(50)
    _, slope = _bounds(program, x)
    points = (x.lower + torch.linspace(0, 1, 101, dtype=torch.float64) * x.width).requires_grad_()
    (slopes,) = torch.autograd.grad(torch.cat([function(c) for c in points.split(1, dim=1)], dim=1).sum(), points)
    assert (slope.lower <= slopes + 1e-6).all()
    assert (slope.upper >= slopes - 1e-6).all()


def _with_many_summands(x: Tensor) -> Tensor:
    total = x.square() + 1.0
    for _ in range(200):
        total = total + 2.0**-25
    return torch.reciprocal(total)


@pytest.mark.parametrize(
    ("function", "grad"),
    [
        pytest.param(lambda x: torch.sqrt(x.square() - 1e4 + 10001), 1.0, id="numbers that cancel"),
        pytest.param(lambda x: torch.sqrt(x.square() + 1e4 - 9999), 1.0, id="numbers that cancel, rising first"),
        pytest.param(_with_many_summands, 1.0, id="summands that are lost one by one"),
        pytest.param(lambda x: torch.sqrt(x.square() * 1e30 * 1e-30 + 1.0), 1e-20, id="factors that undo each other"),
    ],
)
def test_runs_of_calls_that_lose_digits_lie_inside(function: Function, grad: float) -> None:
    program = _program(function, torch.float32).with_rounding(torch.float64, "run")
    x = torch.linspace(-0.1, 0.1, 101).reshape(-1, 1)
    _, slope = _bounds(program, Interval.point(x.double()), grad)
    points = x.clone().requires_grad_()
    (towards,) = torch.autograd.grad(function(points), points, torch.full_like(x, grad))
    assert (slope.lower <= towards).all()
    assert (slope.upper >= towards).all()


def _read_twice(x: Tensor) -> Tensor:
    return torch.sqrt(x) + 0.1 * x


def _runs_argument(composite: Composite, generator: torch.Generator) -> Tensor:
    """Return numbers of all sizes whose square is finite in single precision, or logits that are not certain."""
    sign = torch.randint(0, 2, (20000,), generator=generator) * 2 - 1
    share = torch.rand(20000, generator=generator, dtype=torch.float64)
    if isinstance(composite, LogSigmoid):
        return (sign * 10.0 ** (2 * share - 1)).clamp(-12.0, 80.0 if composite.sign > 0 else 12.0)
    return sign * 10.0 ** (33 * share - 15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", WRITTEN)
def test_runs_in_their_own_type_lie_inside(name: str, dtype: torch.dtype) -> None:
    composite, function = WRITTEN[name]
    generator = torch.Generator().manual_seed(7)
    x = _runs_argument(composite, generator)
    grad = 10.0 ** (torch.rand(20000, generator=generator, dtype=torch.float64) * 60 - 35)
    x, grad = x.to(dtype), grad.to(dtype)
    moving = x.clone().requires_grad_()
    result = function(moving)
    (towards,) = torch.autograd.grad(result, moving, grad)
    arithmetic = Arithmetic(dtype, torch.float64)
    bounds = composite.towards(Interval.point(grad.double()), Interval.point(x.double()), 2, arithmetic)
    finite = towards.isfinite()
    assert (bounds.lower <= towards.double())[finite].all()
    assert (bounds.upper >= towards.double())[finite].all()
    span = composite.range(Interval.point(x.double()), arithmetic)
    if span is not None:
        assert (span.lower <= result.detach().double()).all()
        assert (span.upper >= result.detach().double()).all()
