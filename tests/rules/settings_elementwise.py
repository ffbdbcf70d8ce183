"""Settings of activation functions, softmax and other functions of one number.

Extrema inside a box are no candidates of `bounds_are_attained`, so functions with turns claim exactness there on boxes
without one; `test_activation` compares their ranges with dense samples.
"""

import torch
from torch.nn import functional as F

from tests.rules.laws import Box, Setting

aten = torch.ops.aten

ROW = Box((2,))
SCALAR = Box()
WIDE = Box((2,), low=-3.0, high=3.0, radius=3.0)
LARGE = Box((3,), low=-200.0, high=200.0, radius=50.0)
FAR = Box((3,), low=-20.0, high=20.0, radius=5.0)
HIGH = Box(low=3.6, high=5.0, radius=0.5)
POSITIVE = Box(low=1.0, high=2.0, radius=0.6)
NEGATIVE = Box(low=-2.0, high=-1.0, radius=0.6)
ATTAINED = ("output", "gradient")
CONTAINED: tuple[str, ...] = ()

# op, use, function
ACTIVATIONS = [
    (aten.leaky_relu.default, "default", F.leaky_relu),
    (aten.leaky_relu.default, "steep", lambda x: F.leaky_relu(x, 1.5)),
    (aten.leaky_relu.default, "negative slope", lambda x: F.leaky_relu(x, -0.4)),
    (aten.elu.default, "default", F.elu),
    (aten.elu.default, "alpha 2", lambda x: F.elu(x, 2.0)),
    (aten.elu.default, "alpha 0.3", lambda x: F.elu(x, 0.3)),
    (aten.selu.default, "default", F.selu),
    (aten.celu.default, "alpha 0.7", lambda x: F.celu(x, 0.7)),
    (aten.gelu.default, "erf", F.gelu),
    (aten.gelu.default, "tanh", lambda x: F.gelu(x, approximate="tanh")),
    (aten.silu.default, "default", F.silu),
    (aten.softplus.default, "default", F.softplus),
    (aten.softplus.default, "beta 3", lambda x: F.softplus(x, 3.0)),
    (aten.softplus.default, "low threshold", lambda x: F.softplus(x, 1.0, 0.4)),
    (aten.softplus.default, "negative threshold", lambda x: F.softplus(x, 2.0, -1.0)),
    (aten.softplus.default, "negative beta", lambda x: F.softplus(x, -2.0, 0.5)),
    (aten.log_sigmoid.default, "default", F.logsigmoid),
    (aten.tanh.default, "default", torch.tanh),
    (aten.sigmoid.default, "default", torch.sigmoid),
    (aten.hardtanh.default, "default", F.hardtanh),
    (aten.hardtanh.default, "narrow", lambda x: F.hardtanh(x, -0.2, 0.1)),
    (aten.relu6.default, "default", F.relu6),
    (aten.hardsigmoid.default, "default", F.hardsigmoid),
    (aten.hardswish.default, "default", F.hardswish),
    (aten.clamp.default, "both", lambda x: x.clamp(-0.5, 0.3)),
    (aten.clamp.default, "exchanged", lambda x: x.clamp(0.5, -0.3)),
    (aten.clamp.default, "low", lambda x: x.clamp(min=0.1)),
    (aten.clamp.default, "high", lambda x: x.clamp(max=0.1)),
    (aten.clamp_min.default, "low", lambda x: torch.clamp_min(x, -0.2)),
    (aten.clamp_max.default, "high", lambda x: torch.clamp_max(x, 0.2)),
    (aten.erf.default, "default", torch.erf),
]

POSITIVES = [
    (aten.log.default, torch.log),
    (aten.sqrt.default, torch.sqrt),
    (aten.rsqrt.default, torch.rsqrt),
    (aten.reciprocal.default, torch.reciprocal),
]

# functions that take several calls, by the last one
COMPOSITES = [
    (aten.sqrt.default, "of a quadratic", lambda x: torch.sqrt(x.square() + 0.1)),
    (aten.log.default, "of a quadratic", lambda x: torch.log(1 + x * x / 2)),
    (aten.reciprocal.default, "of a quadratic", lambda x: torch.reciprocal(x**2 * 3 + 0.7)),
    (aten.rsqrt.default, "of a quadratic", lambda x: torch.rsqrt(x.square() + 0.25)),
    (aten.mul.Tensor, "swish", lambda x: x * torch.sigmoid(x)),
    (aten.mul.Tensor, "swish beside its argument", lambda x: torch.sigmoid(x) * x - 0.5 * x + x.tanh()),
    (aten.log.default, "of a sigmoid", lambda x: torch.log(torch.sigmoid(x))),
    (aten.log.default, "of one minus a sigmoid", lambda x: torch.log(1 - torch.sigmoid(x))),
]

ATTENDED = Box((3,))


def unary(name, op, function, leaf, exact=CONTAINED):
    return Setting(name, op, lambda m, x: function(x), (leaf,), exact=exact)


def composed(name, op, function):
    """Between two layers, where the gradient of a parameter passes through it."""
    return Setting(
        name,
        op,
        lambda m, x: F.linear(function(F.linear(x, m.v, m.c)), m.w),
        (ROW,),
        {"v": Box((3, 2)), "c": Box((3,)), "w": Box((2, 3))},
        CONTAINED,
    )


ELEMENTWISE = [
    *(unary(f"{use}, small", op, function, ROW) for op, use, function in ACTIVATIONS),
    *(unary(f"{use}, wide", op, function, WIDE) for op, use, function in ACTIVATIONS),
    *(unary(f"{use}, large", op, function, LARGE) for op, use, function in ACTIVATIONS),
    *(unary(f"{use}, one side", op, function, HIGH, ATTAINED) for op, use, function in ACTIVATIONS),
    *(composed(f"{use}, layers", op, function) for op, use, function in ACTIVATIONS),
    *(unary(f"{use}, small", op, function, ROW) for op, use, function in COMPOSITES),
    *(unary(f"{use}, wide", op, function, WIDE) for op, use, function in COMPOSITES),
    *(composed(f"{use}, layers", op, function) for op, use, function in COMPOSITES),
    unary("one number", aten.exp.default, torch.exp, SCALAR, ATTAINED),
    *(unary("positive", op, function, POSITIVE, ATTAINED) for op, function in POSITIVES),
    unary("negative", aten.reciprocal.default, torch.reciprocal, NEGATIVE, ATTAINED),
]

SOFTMAX = [
    unary("classes", aten.softmax.int, lambda x: x.softmax(1), ATTENDED, ("output",)),
    unary("one class", aten.softmax.int, lambda x: x.softmax(-1), Box((1,))),
    unary("two classes", aten.softmax.int, lambda x: x.softmax(-1), ROW, ("output",)),
    unary("last axis", aten.softmax.int, lambda x: x.softmax(-1), Box((2, 3, 4))),
    unary("middle axis", aten.softmax.int, lambda x: x.softmax(2), Box((2, 3, 4))),
    unary("large", aten.softmax.int, lambda x: x.softmax(-1), LARGE),
    composed("layers", aten.softmax.int, lambda x: x.softmax(1)),
    unary("three classes", aten.log_softmax.int, lambda x: x.log_softmax(1), ATTENDED, ATTAINED),
    unary("one class", aten.log_softmax.int, lambda x: x.log_softmax(1), Box((1,))),
    unary("last axis", aten.log_softmax.int, lambda x: x.log_softmax(-1), Box((2, 3))),
    unary("large", aten.log_softmax.int, lambda x: x.log_softmax(1), LARGE),
    composed("layers", aten.log_softmax.int, lambda x: x.log_softmax(1)),
    unary("log of softmax", aten.log_softmax.int, lambda x: x.softmax(1).log(), ATTENDED, ATTAINED),
    unary("log of softmax, far", aten.log_softmax.int, lambda x: x.softmax(-1).log(), FAR),
]
