"""Backward substitution through whole networks."""

import math

import pytest
import torch
from torch import nn

from agt_lightning.adversaries.features import perturbed
from agt_lightning.interval import Interval
from agt_lightning.propagation import propagate_forward, refinement
from agt_lightning.propagation.crown import Substitution
from tests.propagation.crown.networks import BATCH, box_of, dense, inputs_of, program_of, sampled_outputs
from tests.propagation.crown.oracles import ALPHAS, plain_crown, printed_upper_bound
from tests.propagation.crown.slopes import SLOPES

ROUNDING = 1e-11
"""Float64 rounding of four layers of a few units, and the outward rounding of the bounds."""


def bounds_of(program, inputs, method="crown"):
    return propagate_forward(program, inputs, refine=refinement(method, program))


def linear_values(program, values):
    return [values[call.name] for call in program.graph.calls if "linear" in str(call.op)]


@pytest.mark.parametrize("name", sorted(SLOPES))
def test_with_fixed_parameters_it_is_plain_crown(name):
    module = dense(3, 5, 4, 4, 2)
    program = program_of(module, (3,))
    x = box_of((3,), 0.3)
    substitution = Substitution(program, SLOPES[name])

    def refine(values, call, bounds):
        return substitution.bounds(values, call.name, bounds) if "linear" in str(call.op) else bounds

    values = propagate_forward(program, inputs_of(program, module, x, 0.0), refine=refine)
    layers = [(layer.weight.tolist(), layer.bias.tolist()) for layer in module if isinstance(layer, nn.Linear)]
    for sample in range(BATCH):
        expected = plain_crown(layers, x.lower[sample].tolist(), x.upper[sample].tolist(), ALPHAS[name])
        for have, (low, high) in zip(linear_values(program, values), expected, strict=True):
            assert torch.allclose(have.lower[sample], torch.tensor(low, dtype=torch.float64), rtol=0, atol=ROUNDING)
            assert torch.allclose(have.upper[sample], torch.tensor(high, dtype=torch.float64), rtol=0, atol=ROUNDING)


def test_the_printed_formula_loses_a_neuron():
    """f = w₂ relu(w₁ x) with w₂ in [-1, 1] and relu in [1, 2] attains 2; appendix C.2 of the paper gives 0."""
    module = dense(1, 1, 1)
    program = program_of(module, (1,))
    one = torch.ones(1, 1, dtype=torch.float64)
    nothing = torch.zeros(1, dtype=torch.float64)
    x = Interval(one, 2 * one)
    boxes = {"0.weight": Interval.point(one), "0.bias": Interval.point(nothing), "2.bias": Interval.point(nothing)}
    boxes["2.weight"] = Interval(-one, one)
    inputs = {name: boxes[target] for name, target in program.graph.parameters.items()}
    inputs |= dict.fromkeys(program.graph.leaves, x)
    values = propagate_forward(program, inputs)
    output = values[program.graph.output]
    bound = Substitution(program).bounds(values, program.graph.output, output)
    attained = 2.0
    printed = printed_upper_bound(
        [((one, one), (nothing, nothing)), ((-one, one), (nothing, nothing))], one[0], 2 * one[0]
    )
    assert printed == 0.0 < attained
    assert attained <= float(bound.upper) <= attained + ROUNDING


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.Softplus])
@pytest.mark.parametrize("radius", [0.0, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("method", ["crown", "tightest"])
def test_bounds_contain_sampled_networks(activation, radius, method):
    generator = torch.Generator().manual_seed(3)
    module = dense(3, 6, 5, 5, 2, activation=activation)
    program, x = program_of(module, (3,)), box_of((3,), 0.1)
    output = bounds_of(program, inputs_of(program, module, x, radius), method)[program.graph.output]
    for sampled in sampled_outputs(module, x, radius, generator, 60):
        assert output.contains(sampled, ROUNDING)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_balls_are_concretized_by_the_dual_norm(p):
    """One linear layer after another with fixed weights is one linear map, whose bound over a ball is exact."""
    module = dense(4, 5, 3, activation=nn.Identity)
    program = program_of(module, (4,))
    x = box_of((4,), 0.0).lower
    values = bounds_of(program, inputs_of(program, module, perturbed(x, 0.2, p), 0.0))
    rows = module[2].weight @ module[0].weight
    radius = 0.2 * torch.linalg.vector_norm(rows, ord={1: math.inf, 2: 2, math.inf: 1}[p], dim=1)
    output = values[program.graph.output]
    assert torch.allclose(output.upper, module(x) + radius, rtol=0, atol=ROUNDING)
    assert torch.allclose(output.lower, module(x) - radius, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("budget", [1, 3000, 2**30])
def test_parts_that_fit_the_memory_give_the_same_bounds(budget):
    module = dense(3, 6, 5, 2)
    program = program_of(module, (3,))
    values = propagate_forward(program, inputs_of(program, module, box_of((3,), 0.1), 0.05))
    output = values[program.graph.output]
    whole, parts = (
        Substitution(program, memory_budget=size).bounds(values, program.graph.output, output)
        for size in (2**20, budget)
    )
    assert torch.allclose(whole.lower, parts.lower, rtol=0, atol=ROUNDING)
    assert torch.allclose(whole.upper, parts.upper, rtol=0, atol=ROUNDING)


class Residual(nn.Module):
    """Convolutions with all that stands between them in a small residual network."""

    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 3, 3, stride=2, padding=1, dtype=torch.float64)
        self.norm = nn.BatchNorm2d(3, dtype=torch.float64)
        self.inner = nn.Conv2d(3, 3, 3, padding="same", dtype=torch.float64)
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Linear(12, 3, dtype=torch.float64)
        self.activation = activation
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 2)
        self.eval()

    def forward(self, x):
        hidden = self.activation(self.norm(self.first(x)))
        hidden = self.activation(hidden + 0.5 * self.inner(hidden))
        return self.last(self.pool(hidden).flatten(1) / 2 - 0.1)


@pytest.mark.parametrize(
    "activation", [torch.relu, torch.tanh, nn.functional.gelu, lambda x: nn.functional.max_pool2d(x, 1)]
)
@pytest.mark.parametrize("radius", [0.0, 0.005, 0.05])
def test_residual_convolutions_contain_sampled_networks(activation, radius):
    generator = torch.Generator().manual_seed(5)
    module = Residual(activation)
    program, x = program_of(module, (1, 8, 8)), box_of((1, 8, 8), 0.02)
    inputs = inputs_of(program, module, x, radius)
    ibp, crown, tightest = (
        bounds_of(program, inputs, method)[program.graph.output] for method in ("ibp", "crown", "tightest")
    )
    for sampled in sampled_outputs(module, x, radius, generator, 40):
        assert crown.contains(sampled, ROUNDING)
        assert tightest.contains(sampled, ROUNDING)
    assert bool((tightest.lower >= ibp.lower - ROUNDING).all())
    assert bool((tightest.upper <= ibp.upper + ROUNDING).all())


def test_small_boxes_of_residual_convolutions_gain():
    module = Residual(torch.relu)
    program = program_of(module, (1, 8, 8))
    inputs = inputs_of(program, module, box_of((1, 8, 8), 0.02), 0.001)
    ibp, tightest = (bounds_of(program, inputs, method)[program.graph.output] for method in ("ibp", "tightest"))
    assert float(tightest.width.sum()) < 0.8 * float(ibp.width.sum())
