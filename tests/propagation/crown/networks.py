"""Small programs with parameters and inputs in boxes."""

import torch
from torch import nn

from agt_lightning.capture import capture, reached
from agt_lightning.interval import Interval
from agt_lightning.propagation import Program
from agt_lightning.rules import RULES

BATCH = 4


def dense(*widths, seed=0, activation=nn.ReLU):
    """A network of linear layers in float64."""
    torch.manual_seed(seed)
    layers = [nn.Linear(i, o, dtype=torch.float64) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    return nn.Sequential(*[part for layer in layers for part in (layer, activation())][:-1])


def program_of(module, shape):
    """The captured forward pass of a module for samples of this shape."""
    graph = capture(module, lambda leaves: module(leaves[0]), [torch.ones(2, *shape, dtype=torch.float64)])
    return Program.build(
        graph, RULES, samples=reached(graph, set(graph.leaves)), trainable=reached(graph, set(graph.parameters))
    )


def inputs_of(program, module, x, radius):
    """Bounds of everything that goes in: x, and each parameter within ``radius`` of its value."""
    graph, state = program.graph, dict(module.named_parameters())
    values = dict.fromkeys(graph.leaves, x)
    for name, target in graph.parameters.items():
        value = state[target].detach()
        values[name] = Interval(value - radius, value + radius) if radius else Interval.point(value)
    buffers = dict(module.named_buffers())
    values |= {name: Interval.point(buffers[target].double()) for name, target in graph.buffers.items()}
    return values | {name: Interval.point(value.double()) for name, value in graph.constants.items()}


def box_of(shape, radius, seed=1):
    """Boxes of this radius around normal samples."""
    x = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Interval(x - radius, x + radius) if radius else Interval.point(x)


def sampled_outputs(module, x, radius, generator, count):
    """Outputs of networks and inputs drawn from their boxes, corners among them."""
    start = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for number in range(count):
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = 2 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 1
                parameter.copy_(start[name] + radius * (noise.sign() if number % 2 else noise))
        share = torch.rand(x.shape, generator=generator, dtype=torch.float64)
        share = share.round() if number % 3 else share
        yield module(x.lower + share * x.width).detach()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(start[name])
