"""Element-wise calls on integers: exact on fixed data, and on labels the images of all flips."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.capture.graph import Call, Reference
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.rules import Site
from agt_lightning.rules.discrete import DiscreteFunction

_aten = torch.ops.aten

CALLS = {
    "less one": (_aten.sub.Tensor, {"other": 1, "alpha": 1}, lambda y: y - 1),
    "from five": (_aten.rsub.Scalar, {"other": 5, "alpha": 1}, lambda y: 5 - y),
    "halved": (_aten.div.Tensor_mode, {"other": Reference("two"), "rounding_mode": "floor"}, lambda y: y // 2),
    "odd": (_aten.remainder.Scalar, {"other": 2}, lambda y: y % 2),
    "is two": (_aten.eq.Scalar, {"other": 2}, lambda y: y == 2),
    "is not two": (_aten.ne.Scalar, {"other": 2}, lambda y: y != 2),
    "at most two": (_aten.clamp.default, {"min": None, "max": 2}, lambda y: y.clamp(max=2)),
}
LABELS = torch.tensor([1, 2, 3, 4])


def site_of(op, arguments, result):
    tensors = sum(isinstance(value, Reference) for value in arguments.values())
    call = Call("result", op, {"self": Reference("y"), **arguments}, tuple(result.shape), result.dtype, "line")
    shapes = (tuple(result.shape), *[()] * tensors)
    return Site(call, shapes, (True, *[False] * tensors), (False,) * (1 + tensors))


@pytest.mark.parametrize(("op", "arguments", "function"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("limits", [{}, {"sources": (1, 4), "targets": (3,)}], ids=["all", "some"])
def test_every_flip_reaches_a_class_that_the_result_can_reach(op, arguments, function, limits):
    labels = ClassLabels(LABELS, flippable=True, **limits)
    others = [torch.tensor(2)] * sum(isinstance(value, Reference) for value in arguments.values())
    result = DiscreteFunction(None).forward(site_of(op, arguments, function(LABELS)), [labels, *others])
    assert isinstance(result, ClassLabels)
    classes = 2 if result.index.dtype == torch.bool else 6
    reachable = result.reachable(classes)
    for row, label in enumerate(LABELS.tolist()):
        flips = limits.get("targets", range(1, 5)) if label in limits.get("sources", range(1, 5)) else ()
        for flipped in (label, *flips):
            assert bool(reachable[row, int(function(torch.tensor(flipped)))])


def test_fixed_integers_stay_exact_in_their_own_type():
    pixels = torch.tensor([0, 255], dtype=torch.uint8)
    site = site_of(_aten.add.Tensor, {"other": 1, "alpha": 1}, pixels)
    assert torch.equal(DiscreteFunction(None).forward(site, [pixels]), pixels + 1)


def test_numbers_that_can_move_are_no_classes():
    site = site_of(_aten.eq.Scalar, {"other": 2}, LABELS == 2)
    moving = Interval.trusted(LABELS - 0.5, LABELS + 0.5)
    with pytest.raises(UncertifiableError, match="numbers that can move"):
        DiscreteFunction(None).forward(site, [moving])


def test_flipped_labels_that_meet_other_entries_are_refused():
    site = site_of(_aten.sub.Tensor, {"other": Reference("z"), "alpha": 1}, LABELS)
    with pytest.raises(UncertifiableError, match="combines class labels that can be flipped"):
        DiscreteFunction(None).forward(site, [ClassLabels(LABELS, flippable=True), LABELS])


class Frozen(nn.Module):
    """A frozen layer with a trained head, to which every domain applies."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(3, 4).requires_grad_(requires_grad=False)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


def binary(module, batch):
    x, y = batch
    return F.binary_cross_entropy_with_logits(module(x).squeeze(-1), (y == 2).float())


def squared(module, batch):
    x, y = batch
    return F.mse_loss(module(x).squeeze(-1), 2 * (y == 2).float() - 1)


@pytest.mark.parametrize("loss", [binary, squared])
@pytest.mark.parametrize("settings", [{"method": "tightest"}, {"domains": ("ball",)}, {"domains": ("box", "ball")}])
def test_tests_for_a_class_are_bounded_by_all_methods(loss, settings):
    x, module = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), Frozen()
    engine = AbstractGradientEngine(module, loss, BoundedAdversary(n=1, nu=1, q=0), **settings)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    engine.step([(x, LABELS)], torch.optim.SGD(module.parameters(), lr=0.5))
    bounds = engine.bounds
    for row in range(4):
        for label in range(1, 5):
            other = Frozen()
            other.load_state_dict(start)
            flipped = LABELS.clone()
            flipped[row] = label
            optimizer = torch.optim.SGD(other.parameters(), lr=0.5)
            loss(other, (x, flipped)).backward()
            optimizer.step()
            assert bounds.contains(other)
    assert bounds.mean_width() > 1e-3


def test_influence_leaves_tests_for_a_class_to_other_domains():
    engine = AbstractGradientEngine(Frozen(), squared, BoundedAdversary(n=1, nu=1, q=0), domains=("influence",))
    problems = engine.problems((torch.ones(4, 3), LABELS), torch.optim.SGD(engine.module.parameters(), lr=0.5))
    assert "one-hot encoded classes" in "\n".join(problems)
