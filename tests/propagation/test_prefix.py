"""What of a batch the adversary reaches before any trained parameter enters, a few samples at a time."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning import BoundedAdversary
from agt_lightning.aggregation.rounded_sums import StepSums
from agt_lightning.gradients import Buffers
from agt_lightning.interval import Interval
from agt_lightning.propagation import propagate_forward
from agt_lightning.propagation.config import CertificationConfig
from agt_lightning.propagation.loss_capture import LossCapture
from agt_lightning.propagation.passes import BoundedBatch, propagate
from agt_lightning.propagation.prefix import PoisonedPrefix, frozen_values
from agt_lightning.propagation.samples import MicroBatch
from agt_lightning.rules import RULES
from agt_lightning.rules.values import select

SUMS = StepSums(None, torch.float64, 10)

AT_ONCE, BY_TWO, ONE_BY_ONE = 2**20, 2 * 2 * 8 * 6, 1
"""Budgets: each sample has three outputs of a linear layer and three of its tanh, with two bounds of eight bytes."""

BUDGETS = {"at once": AT_ONCE, "by two": BY_TWO, "one by one": ONE_BY_ONE}


class Behind(nn.Module):
    """A trained layer behind a frozen one."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(2, 3).double().requires_grad_(False)
        self.head = nn.Linear(3, 1).double()

    def forward(self, x):
        return self.head(torch.tanh(self.frozen(x.flatten(1))))


def loss(module, batch):
    return F.mse_loss(module(batch[0]), 2 * batch[1])


class Case:
    def __init__(self):
        torch.manual_seed(0)
        self.module = Behind()
        self.batch = MicroBatch((torch.randn(5, 2).double(), torch.rand(5, 1).double()))
        captured = LossCapture(RULES).once(self.module, loss, self.batch.data)
        self.bounded = captured.rounded(torch.float64, "run")

    def frozen(self, budget, **options):
        return frozen_values(self.bounded, self.module, self.batch, torch.float64, budget, **options)

    def named(self, *operations):
        calls = self.bounded.program.graph.calls
        return [call.name for call in calls if call.op.name().split("::")[1].split(".")[0] in operations]


@pytest.fixture
def case():
    return Case()


ROWS = torch.tensor([1, 4])

ADVERSARIES = {
    "features": BoundedAdversary(n=1, epsilon=0.1),
    "features in a ball": BoundedAdversary(n=1, epsilon=0.1, p=2),
    "labels": BoundedAdversary(n=1, nu=0.2),
    "both": BoundedAdversary(n=1, epsilon=0.1, nu=0.2),
}


def equal(a, b):
    return torch.allclose(a.lower, b.lower, 1e-9, 1e-12) and torch.allclose(a.upper, b.upper, 1e-9, 1e-12)


def all_at_once(case, inputs):
    skip = {call.name for call in case.bounded.program.graph.calls} & (case.bounded.dependent | case.bounded.skipped)
    return propagate_forward(case.bounded.program, inputs, skip=frozenset(skip))


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_clean_values_are_those_of_the_whole_batch(case, budget):
    values = case.frozen(budget, keep_all=True)
    calls = {call.name for call in case.bounded.program.graph.calls}
    whole = all_at_once(case, {name: value for name, value in values.items() if name not in calls})
    assert values.keys() == whole.keys()
    assert all(equal(values[name], whole[name]) for name in values)


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("rows", [None, ROWS], ids=["all", "some"])
@pytest.mark.parametrize("adversary", ADVERSARIES.values(), ids=ADVERSARIES)
def test_poisoned_values_are_what_the_poisoned_inputs_give(case, adversary, rows, budget):
    values, bounded = case.frozen(budget), case.bounded
    reach = PoisonedPrefix(bounded, values, adversary, rows, budget)
    poisoned = bounded.poisoned(values, adversary, rows)
    whole = all_at_once(case, poisoned)
    read = bounded.program.samples - bounded.dependent - bounded.skipped - bounded.inside_frozen_layers
    assert len(read) >= 5  # two leaves, the flattened features, the frozen layer's tanh, the doubled labels
    assert all(equal(reach[name], whole[name]) for name in read)
    for leaf in bounded.program.graph.leaves:
        assert equal(reach[leaf], poisoned[leaf])
        assert isinstance(reach[leaf], Interval)


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_a_layer_behind_a_ball_uses_it_part_by_part(case, budget):
    """An image of the ball has a smaller diagonal than an image of the box around it."""
    (tanh,) = case.named("tanh")
    ball, box = (
        PoisonedPrefix(case.bounded, case.frozen(budget), BoundedAdversary(n=1, epsilon=0.1, p=p), None, budget)[tanh]
        for p in (2, float("inf"))
    )
    assert bool((ball.width < 0.99 * box.width).all())


def test_what_frozen_layers_alone_read_is_dropped(case):
    (linear, *_), (tanh,) = case.named("linear", "addmm"), case.named("tanh")
    assert case.bounded.inside_frozen_layers == {linear}
    dropped, kept = case.frozen(AT_ONCE), case.frozen(AT_ONCE, keep_all=True)
    assert tanh in dropped
    assert kept.keys() - dropped.keys() == {linear}


def test_what_the_adversary_cannot_touch_is_not_computed_again(case):
    values = case.frozen(AT_ONCE)
    reach = PoisonedPrefix(case.bounded, values, BoundedAdversary(n=1, nu=0.2), ROWS, AT_ONCE)
    (feature,) = case.bounded.objective.features
    assert torch.equal(reach[feature].lower, values[feature].lower[ROWS])
    assert not reach.moved_layers
    assert "_reachable" not in vars(reach)


def test_what_depends_on_a_trained_parameter_is_no_part_of_it(case):
    reach = PoisonedPrefix(case.bounded, case.frozen(AT_ONCE), BoundedAdversary(n=1, epsilon=0.1), None, AT_ONCE)
    trained = next(call.name for call in case.bounded.program.graph.calls if call.name in case.bounded.dependent)
    with pytest.raises(KeyError):
        reach[trained]


BOXES = {"nothing moved": {}, "the head moved": {"head.weight": 0.1}, "a frozen layer moved": {"frozen.weight": 0.1}}


def gradients(case, widths, known, budget=BY_TWO):
    adversary = BoundedAdversary(n=1, epsilon=0.1, nu=0.1)
    frozen = case.frozen(budget) if known else {}
    reach = PoisonedPrefix(case.bounded, frozen, adversary, ROWS, budget) if known else None
    points = {name: p.detach() for name, p in case.module.named_parameters()}
    boxes = {
        name: Interval(p - widths[name], p + widths[name]) if name in widths else Interval.point(p)
        for name, p in points.items()
    }
    part = BoundedBatch(case.bounded, case.batch, ROWS, {}, reach, frozen=frozen)
    found = propagate(part, case.module, boxes, adversary, CertificationConfig(), SUMS, Buffers())
    pairs = [(found.clean[name], found.poisoned[name]) for name in found.clean]
    return [gradient.block(0, gradient.elements) for pair in pairs for gradient in pair]


@pytest.mark.parametrize("widths", BOXES.values(), ids=BOXES)
def test_gradients_do_not_depend_on_whether_the_prefix_is_known(case, widths):
    assert all(map(equal, gradients(case, widths, known=True), gradients(case, widths, known=False)))


def test_the_poisoned_pass_reads_the_prefix(case, monkeypatch):
    """Planted fault: a prefix of clean samples gives other gradients."""
    right = gradients(case, BOXES["the head moved"], known=True)
    (tanh,) = case.named("tanh")
    clean = {tanh: select(case.frozen(AT_ONCE)[tanh], ROWS)}
    monkeypatch.setattr(PoisonedPrefix, "moved_layers", clean)
    assert not all(map(equal, right, gradients(case, BOXES["the head moved"], known=True)))
