"""Propagation through whole programs, on a network with shared values."""

import pytest
import torch
from torch import nn

from agt_lightning.capture import capture, reached
from agt_lightning.errors import UncertifiableError
from agt_lightning.gradients import Summed
from agt_lightning.interval import Interval
from agt_lightning.propagation import Program, propagate_backward, propagate_forward
from agt_lightning.rules import RULES

BATCH = 3
ROUNDING = 1e-12
"""Two layers of four units in float64, values below a hundred."""


class Network(nn.Module):
    """Two layers, the second tied to itself, and a fixed scale made of a buffer."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(4, 2, generator=generator, dtype=torch.float64))
        self.tied = nn.Parameter(torch.randn(4, 4, generator=generator, dtype=torch.float64))
        self.register_buffer("scale", torch.full((4,), 0.5, dtype=torch.float64))

    def forward(self, x):
        hidden = (x @ self.first.T).relu()
        return ((hidden @ self.tied.T).relu() @ self.tied.T + hidden) * (self.scale * 2)


@pytest.fixture
def network():
    return Network()


def program_of(network, function=None, trainable=("first", "tied")):
    function = network if function is None else function
    graph = capture(network, lambda leaves: function(leaves[0]), [torch.ones(BATCH, 2, dtype=torch.float64)])
    return Program.build(
        graph,
        RULES,
        samples=reached(graph, set(graph.leaves)),
        trainable=reached(graph, {name for name, target in graph.parameters.items() if target in trainable}),
    )


def inputs_of(program, network, x, radius):
    graph = program.graph
    state = dict(network.named_parameters())
    values = {name: x for name in graph.leaves}
    for name, target in graph.parameters.items():
        value = state[target].detach()
        values[name] = Interval(value - radius, value + radius) if radius else Interval.point(value)
    values |= {name: Interval.point(dict(network.named_buffers())[target]) for name, target in graph.buffers.items()}
    return values | {name: Interval.point(value.double()) for name, value in graph.constants.items()}


def gradients_of(program, values, seed):
    factors = propagate_backward(program, values, {program.graph.output: seed})
    return {program.graph.parameters[name]: gradient for name, gradient in factors.items()}


def test_points_give_the_network_and_its_per_sample_gradients(network):
    program = program_of(network)
    x = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = propagate_forward(program, inputs_of(program, network, Interval.point(x), 0.0))
    output = network(x)
    assert values[program.graph.output].contains(output.detach(), ROUNDING)
    gradients = gradients_of(program, values, Interval.point(torch.ones(BATCH, 4, dtype=torch.float64)))
    for name, parameter in network.named_parameters():
        block = gradients[name].block(0, parameter.numel())
        for sample in range(BATCH):
            (exact,) = torch.autograd.grad(output[sample].sum(), parameter, retain_graph=True)
            assert torch.allclose(block.lower[:, sample], exact.flatten(), rtol=0, atol=ROUNDING)
            assert torch.allclose(block.upper[:, sample], exact.flatten(), rtol=0, atol=ROUNDING)


def test_boxes_contain_sampled_networks_and_their_gradients(network):
    generator = torch.Generator().manual_seed(2)
    program = program_of(network)
    center = torch.randn(BATCH, 2, generator=generator, dtype=torch.float64)
    box = Interval(center - 0.2, center + 0.2)
    values = propagate_forward(program, inputs_of(program, network, box, 0.1))
    gradients = gradients_of(program, values, Interval.point(torch.ones(BATCH, 4, dtype=torch.float64)))
    start = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for _ in range(20):
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(start[name] + 0.1 * (2 * noise - 1).sign())
        output = network(center + 0.2 * (2 * torch.rand(BATCH, 2, generator=generator, dtype=torch.float64) - 1))
        assert values[program.graph.output].contains(output.detach(), ROUNDING)
        for name, parameter in network.named_parameters():
            block = gradients[name].block(0, parameter.numel())
            for sample in range(BATCH):
                (exact,) = torch.autograd.grad(output[sample].sum(), parameter, retain_graph=True)
                assert Interval(block.lower[:, sample], block.upper[:, sample]).contains(exact.flatten(), ROUNDING)


def test_fewer_samples_than_captured_are_propagated(network):
    program = program_of(network)
    x = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = propagate_forward(program, inputs_of(program, network, Interval.point(x), 0.1))
    part = propagate_forward(program, inputs_of(program, network, Interval.point(x[:1]), 0.1))
    name = program.graph.output
    assert torch.allclose(part[name].upper, whole[name].upper[:1], rtol=0, atol=ROUNDING)
    seeds = [Interval.point(torch.ones(size, 4, dtype=torch.float64)) for size in (1, BATCH)]
    few, all_of_them = (
        gradients_of(program, v, s)["tied"].block(0, 16) for v, s in zip((part, whole), seeds, strict=True)
    )
    assert torch.allclose(few.lower, all_of_them.lower[:, :1], rtol=0, atol=ROUNDING)


def test_a_parameter_used_twice_sums_its_uses(network):
    program = program_of(network)
    values = propagate_forward(program, inputs_of(program, network, Interval.point(torch.ones(BATCH, 2).double()), 0.0))
    gradients = gradients_of(program, values, Interval.point(torch.ones(BATCH, 4, dtype=torch.float64)))
    assert isinstance(gradients["tied"], Summed)
    assert not isinstance(gradients["first"], Summed)


def test_frozen_parameters_have_no_gradient(network):
    program = program_of(network, trainable=("tied",))
    values = propagate_forward(program, inputs_of(program, network, Interval.point(torch.ones(BATCH, 2).double()), 0.0))
    gradients = gradients_of(program, values, Interval.point(torch.ones(BATCH, 4, dtype=torch.float64)))
    assert set(gradients) == {"tied"}


def test_seeds_at_two_values_add_up(network):
    program = program_of(network)
    values = propagate_forward(program, inputs_of(program, network, Interval.point(torch.ones(BATCH, 2).double()), 0.1))
    once, twice = (Interval.point(torch.full((BATCH, 4), size, dtype=torch.float64)) for size in (1.0, 2.0))
    single = gradients_of(program, values, once)["first"].block(0, 8)
    double = gradients_of(program, values, twice)["first"].block(0, 8)
    assert torch.allclose(2 * single.upper, double.upper, rtol=0, atol=ROUNDING)


def test_known_values_are_taken_and_skipped_ones_left_out(network):
    program = program_of(network)
    inputs = inputs_of(program, network, Interval.point(torch.ones(BATCH, 2).double()), 0.1)
    values = propagate_forward(program, inputs)
    first = program.graph.calls[0].name
    again = propagate_forward(program, inputs, known={name: values[name] for name in values if name not in inputs})
    assert all(again[name] is values[name] for name in values)
    assert program.graph.output not in propagate_forward(program, inputs, skip=frozenset({program.graph.output}))
    assert first in values


def test_a_call_on_boxed_parameters_alone_needs_a_rule(network):
    program = program_of(network, lambda x: x @ network.first.T * network.tied.lgamma().sum(), trainable=("first",))
    assert not program.problems
    with pytest.raises(UncertifiableError, match="changes a parameter that has bounds, or a rounded result"):
        propagate_forward(program, inputs_of(program, network, Interval.point(torch.ones(BATCH, 2).double()), 0.1))
