"""Comparisons of labels with numbers contain what every flip gives, in each type that a run compares in."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.capture.graph import Call, Reference
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.rules import Site, comparison
from agt_lightning.rules.comparison import COMPARISONS
from tests.faults import Fault, require_checks_pass

LABELS = torch.tensor([0, 2, 3])
TARGETS = (1, 2)


def site_of(op, other):
    arguments = {"self": Reference("y"), "other": other}
    tensors = 1 + isinstance(other, Reference)
    call = Call("result", op, arguments, (3,), torch.bool, "line")
    return Site(call, ((3,),) * tensors, (True,) * tensors, (False,) * tensors)


def contains(result, value):
    return (result.lower <= value).all() and (value <= result.upper).all()


def check_flips():
    """Every flip of an integer label gives what the bounds say, and bounds are as narrow as the flips."""
    for op, rule in COMPARISONS.items():
        for number in (1, 2):
            other = Reference("k") if op._overloadname == "Tensor" else number
            inputs = [ClassLabels(LABELS, flippable=True, targets=TARGETS), torch.full((3,), number)]
            result = rule.forward(site_of(op, other), inputs[: 1 + isinstance(other, Reference)])
            values = [
                op(torch.tensor(written), number if op._overloadname == "Scalar" else torch.tensor(number)).double()
                for written in itertools.product(*({own, *TARGETS} for own in LABELS.tolist()))
            ]
            assert torch.equal(result.lower, torch.stack(values).amin(0)), "outside or wide"
            assert torch.equal(result.upper, torch.stack(values).amax(0)), "outside or wide"


def check_conversions():
    """Numbers that one type merges are not told apart."""
    for kind in (torch.float32, torch.bfloat16):
        near = torch.tensor([1 - 2.0**-9, 1 + 2.0**-9, 0.5], dtype=torch.float64)
        box = Interval.trusted(near - 2.0**-30, near + 2.0**-30)
        for op, rule in COMPARISONS.items():
            if op._overloadname == "Scalar":
                result = rule.forward(site_of(op, 1.0), [box])
                for end in (box.lower, box.upper, near):
                    assert contains(result, op(end.to(kind), 1.0).double()), "a comparison is outside"


def rounding_forgotten(large, small):
    return large > small


def exchanged(large, small):
    return small > large


FAULTS = [
    Fault("rounding forgotten", check_conversions, rounding_forgotten, (comparison, "_apart")),
    Fault("operands exchanged", check_flips, exchanged, (comparison, "_apart")),
]


def test_the_checks_pass_without_faults():
    require_checks_pass(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_noticed(fault):
    fault.require_noticed("outside")


LOSSES = {
    "squared error": lambda z, y: F.mse_loss(z.sum(1), y.float()),
    "levels": lambda z, y: F.binary_cross_entropy_with_logits(z, (y[:, None] > torch.arange(3)).float()),
    "expected class": lambda z, y: F.mse_loss((z.softmax(1) * torch.arange(3.0)).sum(1), y.float()),
    "hinge": lambda z, y: (1 - (2 * y - 1) * z[:, 0]).clamp(min=0).mean(),
    "distance to classes": lambda z, y: (z.softmax(1) * (y[:, None] - torch.arange(3)).abs()).sum(1).mean(),
    "mask": lambda z, y: (F.cross_entropy(z, y, reduction="none") * (y >= 1)).mean(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("sources", [None, (0, 2)], ids=["all", "some"])
def test_every_flip_of_a_label_that_is_a_number_stays_inside(loss, sources):
    torch.manual_seed(0)
    x, y, model = torch.randn(5, 2), torch.tensor([0, 1, 2, 2, 1]), nn.Linear(2, 3)
    adversary = BoundedAdversary(n=1, nu=1, q=0, target_classes=(0, 2), source_classes=sources)

    def train(module, labels, step):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            step(module, labels, optimizer)
        return [p.detach() for p in module.parameters()]

    def plain(module, labels, optimizer):
        optimizer.zero_grad()
        loss(module(x), labels).backward()
        optimizer.step()

    engine = AbstractGradientEngine(copy.deepcopy(model), lambda m, b: loss(m(b[0]), b[1]), adversary)
    train(engine.module, y, lambda _, labels, optimizer: engine.step([(x, labels)], optimizer))
    used = 0.0
    for row, written in itertools.product(range(5), (0, 2)):
        if sources is not None and int(y[row]) not in sources:
            continue
        flipped = y.clone()
        flipped[row] = written
        for value, box in zip(train(copy.deepcopy(model), flipped, plain), engine.box.values(), strict=True):
            assert contains(box, value)
            used = max(used, float(((value - box.lower) / box.width.clamp(min=1e-12)).max()))
    assert used > 0.6  # most of the width is real


def test_numbers_that_a_flip_writes_must_be_named():
    x, y, model = torch.randn(4, 2), torch.tensor([0, 1, 1, 0]), nn.Linear(2, 1)
    engine = AbstractGradientEngine(
        model, lambda m, b: F.mse_loss(m(b[0])[:, 0], b[1].float()), BoundedAdversary(n=1, nu=1, q=0)
    )
    with pytest.raises(UncertifiableError, match=r"target_classes=\(0, 1\)"):
        engine.step([(x, y)], torch.optim.SGD(model.parameters(), lr=0.1))
