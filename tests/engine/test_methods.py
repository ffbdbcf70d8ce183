"""Training with linear bounds: every poisoned run stays inside, and the box is never wider than that of intervals."""

import copy

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, UnboundedAdversary
from agt_lightning.propagation.crown import Substitution
from tests.engine.attacks import LOSSES, ROUNDING, Attacks, assert_contained, data, network

ADVERSARIES = [
    pytest.param("mse", BoundedAdversary(n=2, epsilon=0.1, nu=0.3), id="mse-both"),
    pytest.param("mse", BoundedAdversary(n=2, epsilon=0.3, p=2), id="mse-l2"),
    pytest.param("huber", BoundedAdversary(n=1, epsilon=0.2, nu=0.2), id="huber-both"),
    pytest.param("ce", BoundedAdversary(n=2, epsilon=0.4, p=1), id="ce-l1"),
    pytest.param("ce", BoundedAdversary(n=1, epsilon=0.1, nu=1, q=0), id="ce-both"),
    pytest.param("bce", BoundedAdversary(n=1, epsilon=0.1, nu=1, q=0), id="bce-both"),
    pytest.param("bce", BoundedAdversary(n=2, epsilon=0.5, bounds=(-4, 0.2)), id="bce-range"),
    pytest.param("ce", UnboundedAdversary(n=1, kappa=0.1), id="value-clipping"),
]


@pytest.mark.thinned(5)
@pytest.mark.parametrize("method", ["crown", "tightest"])
@pytest.mark.parametrize("hidden", [(4,), (4, 4, 4)], ids=["one-hidden", "three-hidden"])
@pytest.mark.parametrize(("kind", "adversary"), ADVERSARIES)
def test_bounds_contain_every_poisoned_run(kind, adversary, hidden, method):
    captured: dict[object, object] = {}
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        module, rate = network(kind, hidden), (0.05, 0.3)[seed]
        loss = loss_of(kind)
        engine = AbstractGradientEngine(module, loss, adversary, method=method)
        engine._recordings._kinds = captured
        optimizer = torch.optim.SGD(module.parameters(), lr=rate)
        attacks = Attacks(module, kind, adversary, rate, 0.0, generator)
        for x, y in data(kind, generator):
            attacks.step(x, y)
            engine.step([(x, y)], optimizer)
            assert_contained(engine, attacks.runs)


def loss_of(kind):
    return lambda module, batch: LOSSES[kind](module(batch[0]), batch[1])


@pytest.mark.thinned(3)
@pytest.mark.parametrize("kind", ["mse", "ce"])
@pytest.mark.parametrize("hidden", [(), (6,), (6, 6, 6)], ids=["linear", "one-hidden", "three-hidden"])
def test_tightest_is_never_wider_than_ibp_at_any_step(kind, hidden):
    adversary = BoundedAdversary(n=2, epsilon=0.1)
    torch.manual_seed(0)
    start = network(kind, hidden)
    boxes = {method: list(boxes_after_each_step(start, kind, adversary, method)) for method in ("ibp", "tightest")}
    for ibp, tightest in zip(boxes["ibp"], boxes["tightest"], strict=True):
        for name in ibp:
            assert bool((tightest[name].lower >= ibp[name].lower - ROUNDING).all())
            assert bool((tightest[name].upper <= ibp[name].upper + ROUNDING).all())


def boxes_after_each_step(start, kind, adversary, method):
    module = copy.deepcopy(start)
    engine = AbstractGradientEngine(module, loss_of(kind), adversary, method=method)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for x, y in data(kind, torch.Generator().manual_seed(0)):
        engine.step([(x, y)], optimizer)
        yield dict(engine.box)


@pytest.mark.slow
def test_three_hidden_layers_keep_at_most_four_fifths_of_the_width():
    """11→64→64→64→1, six steps, a tenth of each batch poisoned with ε = .01."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layers = [nn.Linear(i, o, dtype=torch.float64) for i, o in ((11, 64), (64, 64), (64, 64), (64, 1))]
    start = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])
    x = torch.randn(6, 40, 11, generator=generator, dtype=torch.float64)
    y = (0.3 * x[..., :1] + 0.2 * x[..., 1:2].sin()).double()
    widths = {}
    for method in ("ibp", "crown", "tightest"):
        module = copy.deepcopy(start)
        engine = AbstractGradientEngine(
            module, loss_of("mse"), BoundedAdversary(n=4, epsilon=0.01), domains="box", method=method
        )
        optimizer = torch.optim.SGD(module.parameters(), lr=0.005)
        for batch in zip(x, y, strict=True):
            engine.step([batch], optimizer)
        widths[method] = engine.bounds.mean_width()
    assert widths["tightest"] <= 0.8 * widths["ibp"]
    assert widths["crown"] <= 0.8 * widths["ibp"]


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="Expected `method` to be one of"):
        AbstractGradientEngine(nn.Linear(1, 1), loss_of("mse"), BoundedAdversary(n=1), method="alpha")


@pytest.mark.slow
def test_linear_bounds_keep_to_the_memory_budget_and_do_not_depend_on_it(monkeypatch):
    budgets = set()
    walk = Substitution.largest

    def seen(self, values, name, rows):
        budgets.add(self.memory_budget)
        return walk(self, values, name, rows)

    monkeypatch.setattr(Substitution, "largest", seen)
    torch.manual_seed(0)
    start = network("mse", (4, 4, 4))
    boxes = []
    for budget in (2**10, 2**22):
        module = copy.deepcopy(start)
        engine = AbstractGradientEngine(
            module, loss_of("mse"), BoundedAdversary(n=2, epsilon=0.1), method="crown", memory_budget=budget
        )
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        for batch in data("mse", torch.Generator().manual_seed(0)):
            engine.step([batch], optimizer)
        boxes.append(engine.box)
    assert budgets == {2**10, 2**22}
    for name, interval in boxes[0].items():
        torch.testing.assert_close(interval.lower, boxes[1][name].lower)
        torch.testing.assert_close(interval.upper, boxes[1][name].upper)
