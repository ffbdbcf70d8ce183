"""Lower lines that are searched for: sound wherever the search stops, and never worse than where it starts."""

import pytest
import torch
from torch import nn

from agt_lightning.propagation import propagate_forward, refinement
from agt_lightning.propagation.crown import OptimizedSubstitution, Substitution
from tests.propagation.crown.networks import box_of, dense, inputs_of, program_of, sampled_outputs
from tests.propagation.crown.slopes import SLOPES

ROUNDING = 1e-11
"""Float64 rounding of four layers of a few units, and the outward rounding of the bounds."""

RADIUS = 0.05


def problem(activation=nn.ReLU):
    module = dense(3, 8, 8, 8, 2, activation=activation)
    program, x = program_of(module, (3,)), box_of((3,), 0.3)
    inputs = inputs_of(program, module, x, RADIUS)
    values = propagate_forward(program, inputs, refine=refinement("tightest", program))
    return module, program, x, inputs, values


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("start", sorted(SLOPES))
def test_bounds_are_sound_and_no_wider_wherever_the_search_stops(steps, start):
    module, program, x, _, values = problem()
    name = program.graph.output
    plain = Substitution(program, SLOPES[start]).bounds(values, name, values[name])
    searched = OptimizedSubstitution(program, SLOPES[start], steps=steps).bounds(values, name, values[name])
    assert bool((searched.lower >= plain.lower - ROUNDING).all())
    assert bool((searched.upper <= plain.upper + ROUNDING).all())
    for sampled in sampled_outputs(module, x, RADIUS, torch.Generator().manual_seed(0), 40):
        assert searched.contains(sampled, ROUNDING)


def test_the_search_finds_tighter_lines():
    _, program, _, _, values = problem()
    name = program.graph.output
    widths = [
        float(kind(program, SLOPES["one"]).bounds(values, name, values[name]).width.sum())
        for kind in (Substitution, OptimizedSubstitution)
    ]
    assert widths[1] < 0.95 * widths[0]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Tanh])
def test_the_method_is_inside_tightest(activation):
    module, program, x, inputs, tightest = problem(activation)
    values = propagate_forward(program, inputs, refine=refinement("alpha-crown", program))
    assert bool((values[program.graph.output].width <= tightest[program.graph.output].width + ROUNDING).all())
    for sampled in sampled_outputs(module, x, RADIUS, torch.Generator().manual_seed(0), 40):
        assert values[program.graph.output].contains(sampled, ROUNDING)
