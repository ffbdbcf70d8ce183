"""Losses over a number of the batch: bounds contain every training with at most n poisoned samples."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary, UnboundedAdversary
from agt_lightning.capture.graph import Call, Reference
from agt_lightning.capture.totals import OVER_ROOT_OF_MEAN, OVER_TOTAL
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.rules import Site, batch_share
from agt_lightning.rules.batch_share import BatchShare
from agt_lightning.rules.batch_statistics import BatchRows
from tests.faults import Fault, require_checks_pass

B = 4
CASES = [BatchRows(B, None, 1), BatchRows(B, torch.tensor([0, 3]), 2), BatchRows(B, torch.tensor([1, 2, 3]), 2)]
ADDEND = 0.25


def site_of(op, shape):
    arguments = {"value": Reference("a"), "weights": Reference("w")}
    if op is OVER_ROOT_OF_MEAN:
        arguments = {"value": Reference("a"), "addend": ADDEND}
    tensors = 1 if op is OVER_ROOT_OF_MEAN else 2
    call = Call("share", op, arguments, shape, torch.float64, "line")
    return Site(call, (shape, (B,))[:tensors], (True,) * tensors, (True, False)[:tensors])


def boxes(rows, shape, generator):
    """Positive numbers: of all samples, and behind them of poisoned ones, which lie apart."""
    count = B if rows.poisonable is None else len(rows.poisonable)
    lower = 0.5 + torch.rand(B + count, *shape, generator=generator, dtype=torch.float64)
    lower[B:] *= 3
    return Interval.trusted(lower, lower + 0.1, nonnegative=True)


def runs(rows, *values):
    """Every set of poisoned samples, with corners of all boxes and the row of each sample."""
    places = list(range(B)) if rows.poisonable is None else rows.poisonable.tolist()
    for size in range(min(rows.n, len(places)) + 1):
        for chosen in itertools.combinations(places, size):
            at = [B + places.index(i) if i in chosen else i for i in range(B)]
            for up in itertools.product((0.0, 1.0), repeat=B):
                share = torch.tensor(up, dtype=torch.float64)
                ends = [
                    box.lower[at] + box.width[at] * share.reshape(-1, *[1] * (box.lower.ndim - 1)) for box in values
                ]
                yield at, ends


def require_inside(bounds, value):
    excess = float(torch.maximum(bounds.lower - value, value - bounds.upper).max())
    assert excess <= 1e-12, f"outside by {excess:.3g}"


def check_root():
    """Value and gradient of the root of a mean; the root's own clean rows are attained."""
    generator = torch.Generator().manual_seed(0)
    for rows, shape in itertools.product(CASES, [(), (2,)]):
        box, site = boxes(rows, shape, generator), site_of(OVER_ROOT_OF_MEAN, (B, *shape))
        rule, seed = BatchShare(rows), Interval.point(torch.full_like(box.lower, 2.0))
        output, towards = rule.forward(site, [box]), rule.backward(site, seed, [box], box)[0]
        for at, (losses,) in runs(rows, box):
            leaf = losses.requires_grad_()
            root = (leaf.mean() + ADDEND).sqrt()
            require_inside(output[at], ((leaf + ADDEND) / root).detach())
            require_inside(towards[at], torch.autograd.grad(2 * losses.numel() * root, leaf)[0])


def check_total():
    """Value and gradient of a mean that is weighted."""
    generator = torch.Generator().manual_seed(1)
    for rows in CASES:
        box, weights, site = boxes(rows, (), generator), boxes(rows, (), generator), site_of(OVER_TOTAL, (B,))
        rule, seed = BatchShare(rows), Interval.point(torch.full_like(box.lower, 2.0))
        output, towards = rule.forward(site, [box, weights]), rule.backward(site, seed, [box, weights], box)[0]
        for at, (losses, own) in runs(rows, box, weights):
            require_inside(output[at], losses / own.sum())
            require_inside(towards[at], 2 / own.sum().expand(B))


def clean_alone(self, values):
    return values[: self.samples].sum(dim=0, keepdim=True).expand_as(values)


def without_half(self, site, grad, inputs, arithmetic):
    return batch_share.multiply(grad, batch_share._reciprocal(self._divisor(site, inputs, arithmetic)))


def upside_down(divisor):
    return Interval.trusted(divisor.upper.reciprocal(), divisor.upper.reciprocal(), nonnegative=True)


FAULTS = [
    Fault("poison left out of the mean", check_root, clean_alone, (BatchRows, "totals")),
    Fault("poison left out of the weights", check_total, clean_alone, (BatchRows, "totals")),
    Fault("half forgotten", check_root, without_half, (BatchShare, "towards")),
    Fault("largest divisor alone", check_total, upside_down, (batch_share, "_reciprocal")),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_noticed(fault):
    fault.require_noticed("outside by")


def test_the_checks_pass_without_faults():
    require_checks_pass(FAULTS)


X, Y = torch.randn(6, 2, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1, 2, 2, 1, 0])
WEIGHT = torch.tensor([1.0, 3.0, 0.5])
LOSSES = {
    "root": lambda z, y: F.mse_loss(z, F.one_hot(y, 3).float()).sqrt(),
    "root with a number": lambda z, y: torch.sqrt(F.mse_loss(z, F.one_hot(y, 3).float()) + 1e-6),
    "power": lambda z, y: 2 * ((z - F.one_hot(y, 3).float()) ** 2).mean() ** 0.5 + F.cross_entropy(z, y),
    "class weights": lambda z, y: F.cross_entropy(z, y, weight=WEIGHT),
    "class weights, summed": lambda z, y: F.cross_entropy(z, y, weight=WEIGHT, reduction="sum"),
}


def certified(loss, batches, adversary=None, steps=2, **settings):
    torch.manual_seed(0)
    adversary = adversary or BoundedAdversary(n=1, nu=1, q=0, epsilon=0.05)
    engine = AbstractGradientEngine(nn.Linear(2, 3), lambda m, b: loss(m(b[0]), b[1]), adversary, **settings)
    for _ in range(steps):
        engine.step(batches, torch.optim.SGD(engine.module.parameters(), lr=0.1))
    return engine


def poisoned(loss, batches, attack):
    """Train as `certified` does, with batches that the attack changes at the parameters of the run."""
    torch.manual_seed(0)
    module = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        for x, y in attack(copy.deepcopy(module), batches):
            (loss(module(x), y) / len(batches)).backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def attacks(loss, count):
    """Flips of each label with features moved up and down the slope of its loss."""

    def attack(row, label, sign):
        def changed(module, batches):
            result = [(x.clone(), y.clone()) for x, y in batches]
            x, y = result[row % count]
            y[row // count] = label
            leaf = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(loss(module(leaf), y), leaf)
            x[row // count] += sign * 0.0499 * slope[row // count].sign()
            return result

        return changed

    return [attack(row, label, sign) for row in range(6) for label in range(3) for sign in (1, -1)]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("count", [1, 2], ids=["one batch", "two batches a step"])
def test_poisoned_trainings_stay_inside(loss, count):
    batches = [(X[part::count].clone(), Y[part::count].clone()) for part in range(count)]
    engine, used = certified(loss, batches), 0.0
    for attack in attacks(loss, count):
        for name, value in poisoned(loss, batches, attack).items():
            box = engine.box[name]
            assert ((box.lower <= value) & (value <= box.upper)).all()
            used = max(used, float(((value - box.lower) / box.width).max()))
    assert used > 0.55  # attacks go somewhere: without any, values lie in the middle


def test_a_root_that_can_be_zero_is_refused():
    def loss(z, y):
        return F.mse_loss(0 * z, 0.0 * F.one_hot(y, 3)).sqrt()

    with pytest.raises(UncertifiableError, match=r"can be zero.*sqrt\(mse \+ 1e-4\)"):
        certified(loss, [(X, Y)])
    certified(lambda z, y: (F.mse_loss(0 * z, 0.0 * F.one_hot(y, 3)) + 1e-4).sqrt(), [(X, Y)])


def test_weights_that_can_add_up_to_zero_are_refused():
    with pytest.raises(UncertifiableError, match="add up to zero"):
        certified(lambda z, y: F.cross_entropy(z, y, weight=torch.tensor([1.0, 0.0, 0.0])), [(X[:2], Y[:2])])


def test_a_mean_weighted_by_one_hot_targets_is_no_mean_of_labels():
    """Torch divides it by the number of targets, and a mean that is weighted by labels by their weights."""

    def loss(z, y, reduction="mean"):
        return F.cross_entropy(z, F.one_hot(y, 3).float(), weight=WEIGHT, reduction=reduction)

    with pytest.raises(UncertifiableError, match="has weights by class"):
        certified(loss, [(X, Y)])
    certified(lambda z, y: loss(z, y, "none").mean(), [(X, Y)])


def test_labels_that_are_left_out_of_the_total_are_refused():
    y = Y.clone()
    y[1] = -100
    with pytest.raises(UncertifiableError, match="-100"):
        certified(LOSSES["class weights"], [(X, y)], BoundedAdversary(n=1, epsilon=0.05))


@pytest.mark.parametrize("loss", [LOSSES["root"], LOSSES["class weights"]], ids=["root", "class weights"])
@pytest.mark.parametrize(
    ("adversary", "settings", "message"),
    [
        (UnboundedAdversary(n=1, kappa=1.0), {}, "could be clipped"),
        (None, {"domains": ["box", "ball"]}, "does not cover a loss over a number of the batch"),
        (None, {"domains": ["box", "adjoint"]}, "does not cover a loss over a number of the batch"),
        (None, {"domains": ["box", "influence"]}, "does not cover a loss over a number of the batch"),
    ],
    ids=["clipping", "ball", "adjoint", "influence"],
)
def test_what_needs_gradients_of_samples_alone_is_refused(loss, adversary, settings, message):
    with pytest.raises(UncertifiableError, match=message):
        certified(loss, [(X, Y)], adversary, steps=1, **settings)
