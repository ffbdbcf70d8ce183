"""Uses of an op that lie outside what its rule proves: they must be refused, or their bounds must hold."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning.adversaries import BoundedAdversary
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.errors import AgtError
from agt_lightning.rules import RULES
from tests.rules.laws import Box, Setting, bounds_contain_sampled_points

RATE = 0.1
ROUNDING = 1e-9
"""One step of a tiny network in float64."""


class Two(nn.Module):
    """A linear layer and a scalar."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))


def real(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


WHOLE = torch.tensor([[4.0, 3.0, 2.0]] * 5, dtype=torch.float64)
BYTES = WHOLE.to(torch.uint8)
CLASSES = torch.tensor([0, 1, 1, 1, 0])
BINARY = torch.tensor([[0.0, 1.0, 1.0]] * 5, dtype=torch.float64)
FLIPS = BoundedAdversary(n=5, nu=1, q=0)


def cross_entropy_without_class_two(m, x, y):
    return F.cross_entropy(x @ m.weight, y, ignore_index=2)


def class_and_number(m, x, y):
    scores = x @ m.weight
    return F.cross_entropy(scores, y) + (scores.sum(dim=1) - y.to(scores.dtype)).square().mean()


def number_and_class(m, x, number, y):
    scores = x @ m.weight
    return (scores.sum(dim=1) - number).square().mean() + F.cross_entropy(scores, y)


def truncated(m, x, y):
    return F.mse_loss(x.to(torch.int64).to(torch.float64) @ m.weight, y)


def from_bytes(m, x, y):
    return F.mse_loss(x.to(torch.float64) @ m.weight, y)


SOFT = torch.tensor([[0.1, 0.2, 0.7]] * 5, dtype=torch.float64)
EVEN = torch.tensor([[0.0], [1.0], [0.0]] * 2, dtype=torch.float64)[:5]


def smoothed(m, x, y):
    return F.cross_entropy(5 * x @ m.weight, y, label_smoothing=0.1)


def broadcast(m, x, y):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a target size", UserWarning)
        return F.mse_loss(x @ m.weight, y)


# loss, clean batch, adversary, a batch that the adversary can make of it
CASES = {
    "a flip to the ignored class": (
        cross_entropy_without_class_two,
        (real(5, 3), CLASSES),
        FLIPS,
        (real(5, 3), CLASSES * 2),
    ),
    "a class read as a number too": (class_and_number, (real(5, 3), CLASSES), FLIPS, (real(5, 3), 2 - CLASSES)),
    "features cut to integers": (
        truncated,
        (WHOLE, real(5, 3)),
        BoundedAdversary(n=5, epsilon=0.1),
        (WHOLE - 0.1, real(5, 3)),
    ),
    "features stored as bytes": (
        from_bytes,
        (BYTES, real(5, 3)),
        BoundedAdversary(n=5, epsilon=2.0),
        (BYTES + 2, real(5, 3)),
    ),
    "scalar parameter": (
        lambda m, x, y: F.mse_loss(m.scale * (x @ m.weight), y),
        (real(5, 3), real(5, 3)),
        BoundedAdversary(n=5, epsilon=0.1),
        (real(5, 3) + 0.1, real(5, 3)),
    ),
    "labels as floats": (
        lambda m, x, y: F.cross_entropy(x @ m.weight, y.long()),
        (real(5, 3), CLASSES.double()),
        FLIPS,
        (real(5, 3), 1 - CLASSES.double()),
    ),
    "smoothed labels below zero": (
        smoothed,
        (real(5, 3), SOFT),
        BoundedAdversary(n=5, nu=0.5),
        (real(5, 3), SOFT - 0.5),
    ),
    "one target for three outputs": (
        broadcast,
        (real(5, 3), EVEN),
        BoundedAdversary(n=5, nu=0.5),
        (real(5, 3), EVEN - 0.5),
    ),
    "a number before a class": (
        number_and_class,
        (real(5, 3), real(5), CLASSES),
        BoundedAdversary(n=5, epsilon=0.1),
        (real(5, 3) + 0.1, real(5), CLASSES),
    ),
}


def step(module, loss, batch):
    """One step of plain SGD."""
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    loss(module, *batch).backward()
    optimizer.step()
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def require_refused_or_contained(name):
    loss, clean, adversary, poisoned = CASES[name]
    module = Two()
    try:
        engine = AbstractGradientEngine(module, lambda m, batch: loss(m, *batch), adversary)
        optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
        if engine.problems(clean, optimizer):
            return
        engine.step([clean], optimizer)
    except AgtError:
        return
    for attacked, value in step(Two(), loss, poisoned).items():
        assert engine.box[attacked].contains(value, ROUNDING), f"{attacked} left its bounds"


@pytest.mark.parametrize("name", CASES)
def test_refused_or_contained(name):
    require_refused_or_contained(name)


def negative_weight(m, x, y):
    weight = torch.tensor(-3.0, dtype=torch.float64)
    return F.binary_cross_entropy_with_logits(x, y, reduction="none", pos_weight=weight)


def test_negative_weight_of_positives_is_contained():
    label = Box(low=0.5, high=0.5, radius=0.5, differentiable=False)
    op = torch.ops.aten.binary_cross_entropy_with_logits.default
    setting = Setting("negative weight", op, negative_weight, (Box(), label))
    bounds_contain_sampled_points(setting, torch.float64, RULES)


@pytest.mark.parametrize(("dtype", "logit"), [(torch.float64, 20.0), (torch.float32, 12.0)], ids=str)
def test_the_fading_gradient_of_sigmoid_and_binary_cross_entropy_is_contained(dtype, logit):
    """torch divides by max(p (1 - p), 1e-12): in double precision its gradient at a logit of 30 is a tenth of p - y.

    In single precision p is one from a logit of 17.3 on, and the gradient zero.
    """

    def train(x):
        module = torch.nn.Linear(1, 1, bias=False, dtype=dtype)
        torch.nn.init.constant_(module.weight, logit)
        batch = torch.tensor([[x]], dtype=dtype), torch.zeros(1, 1, dtype=dtype)
        return module, lambda m, b: F.binary_cross_entropy(torch.sigmoid(m(b[0])), b[1]), batch

    module, loss, clean = train(1.0)
    engine = AbstractGradientEngine(module, loss, BoundedAdversary(n=1, epsilon=0.5))
    engine.step([clean], torch.optim.SGD(module.parameters(), lr=RATE))
    attacked, loss, poisoned = train(1.5)
    loss(attacked, poisoned).backward()
    torch.optim.SGD(attacked.parameters(), lr=RATE).step()
    assert engine.box["weight"].contains(attacked.weight.detach(), ROUNDING)
