"""Gradients of cross entropy add up to zero over the classes, which the layer below may use."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning.arithmetic import product
from agt_lightning.capture import capture, reached
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation import Program, propagate_forward
from agt_lightning.rules import RULES

SAMPLES, HIDDEN = 5, 4
ROUNDING = 1e-12
"""Float64 rounding of a product of a few classes."""


class Head(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, HIDDEN, dtype=torch.float64))


def head_gradient(classes, logits_radius, weight_radius, smoothing=0.0, seed=0):
    """Bounds of the gradient below a linear head whose labels can be flipped, the boxes, and the plain product."""
    generator = torch.Generator().manual_seed(seed)
    head = Head(classes)

    def loss(leaves):
        z, y = leaves
        return F.cross_entropy(F.linear(z, head.weight), y, reduction="none", label_smoothing=smoothing)

    graph = capture(head, loss, [torch.zeros(2, HIDDEN).double(), torch.zeros(2, dtype=torch.long)])
    program = Program.build(
        graph, RULES, samples=reached(graph, set(graph.leaves)), trainable=reached(graph, set(graph.parameters))
    )
    z = torch.randn(SAMPLES, HIDDEN, generator=generator, dtype=torch.float64)
    center = torch.randn(classes, HIDDEN, generator=generator, dtype=torch.float64)
    weight = Interval(center - weight_radius, center + weight_radius) if weight_radius else Interval.point(center)
    labels = ClassLabels(torch.randint(classes, (SAMPLES,), generator=generator), flippable=True)
    features = Interval(z - logits_radius, z + logits_radius)
    values = {name: features if position == 0 else labels for name, position in graph.leaves.items()}
    values = propagate_forward(program, values | dict.fromkeys(graph.parameters, weight))
    linear, last = graph.calls[0], graph.calls[-1]
    seed_gradient = Interval.point(torch.ones(SAMPLES, dtype=torch.float64))
    operands = [[values[name] for name in call.inputs] for call in (last, linear)]
    towards = program.rules[last.name].backward(
        program.sites[last.name], seed_gradient, operands[0], values[last.name]
    )[0]
    below = program.rules[linear.name].backward(program.sites[linear.name], towards, operands[1], values[linear.name])[
        0
    ]
    plain = product(towards, weight)
    return below, plain, features, weight, towards


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("radius", [0.0, 0.05, 0.5])
def test_every_gradient_is_inside_and_the_plain_product_outside(classes, radius, smoothing):
    below, plain, features, weight, towards = head_gradient(classes, 0.1, radius, smoothing)
    assert towards.balanced
    assert bool((below.lower >= plain.lower - ROUNDING).all())
    assert bool((below.upper <= plain.upper + ROUNDING).all())
    assert float(below.width.sum()) < float(plain.width.sum())
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        w = weight.lower + weight.width * torch.rand(weight.shape, generator=generator, dtype=torch.float64).round()
        z = features.lower + features.width * torch.rand(features.shape, generator=generator, dtype=torch.float64)
        y = torch.randint(classes, (SAMPLES,), generator=generator)
        soft = F.one_hot(y, classes).double() * (1 - smoothing) + smoothing / classes
        gradient = (z @ w.T).softmax(1) - soft
        assert float(gradient.sum(1).abs().max()) <= ROUNDING
        assert below.contains(gradient @ w, ROUNDING)


def test_two_classes_and_a_fixed_weight_are_exact():
    below, _, _, weight, towards = head_gradient(2, 0.1, 0.0)
    difference = (weight.lower[0] - weight.lower[1]).abs()
    assert torch.allclose(below.width, towards.width[:, :1] * difference, rtol=0, atol=ROUNDING)


def test_gradients_that_do_not_add_up_to_zero_would_leave_the_bounds():
    """The fact is needed: bounds made with it miss a gradient without it."""
    generator = torch.Generator().manual_seed(0)
    below, plain, _, weight, towards = head_gradient(3, 0.1, 0.0)
    share = torch.rand(2000, *towards.shape, generator=generator, dtype=torch.float64).round()
    gradients = towards.lower + share * towards.width
    products = gradients @ weight.lower
    assert not below.contains(products, ROUNDING)
    assert plain.contains(products, ROUNDING)
