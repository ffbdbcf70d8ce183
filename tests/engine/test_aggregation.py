"""Whole trainings whose gains are bounded by moments."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary, UnboundedAdversary
from agt_lightning.aggregation import methods as choice

STEPS = 3
ROUNDING = 1e-12
"""Two trainings of the same widths differ by rounding alone."""

CONVOLUTIONAL = "convolutional"
ADVERSARIES = {
    "features": BoundedAdversary(n=3, epsilon=0.05),
    "labels": BoundedAdversary(n=3, nu=0.1),
    "both": BoundedAdversary(n=3, epsilon=0.05, nu=0.1),
}


def network(kind):
    torch.manual_seed(0)
    if kind == CONVOLUTIONAL:
        layers = (nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 1))
    else:
        activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[kind]
        layers = (nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 1))
    return nn.Sequential(*layers).double()


def batches(kind, count):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 20, 4, generator=generator, dtype=torch.float64)
    y = torch.rand(count, 20, 1, generator=generator, dtype=torch.float64)
    return [(features[:, None] if kind == CONVOLUTIONAL else features, y_) for features, y_ in zip(x, y, strict=True)]


def loss(module, batch):
    return F.mse_loss(module(batch[0]), batch[1])


def trained(kind, adversary, aggregation, micro_batches=1, poisonable=None):
    module = network(kind)
    engine = AbstractGradientEngine(module, loss, adversary, aggregation=aggregation, poisonable=poisonable)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(STEPS):
        engine.step(batches(kind, micro_batches), optimizer)
    return engine


def mask(batch):
    return torch.arange(len(batch[0])) % 3 > 0


@pytest.mark.thinned(5)
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("poisonable", [None, mask], ids=["all", "some"])
@pytest.mark.parametrize("adversary", ADVERSARIES.values(), ids=ADVERSARIES)
@pytest.mark.parametrize("kind", ["relu", "tanh", CONVOLUTIONAL])
def test_box_of_moments_contains_the_exact_one(kind, adversary, poisonable, micro_batches):
    exact = trained(kind, adversary, "exact", micro_batches, poisonable)
    moment = trained(kind, adversary, "moment", micro_batches, poisonable)
    assert {way for name, way in moment.domains.in_use["box"].sum_methods.items() if "weight" in name} == {"moment"}
    for name, interval in exact.box.items():
        assert bool((moment.box[name].lower <= interval.lower + ROUNDING).all())
        assert bool((moment.box[name].upper >= interval.upper - ROUNDING).all())
    assert moment.bounds.mean_width() > exact.bounds.mean_width()


def test_auto_gives_the_exact_box_while_it_is_cheap(monkeypatch):
    adversary = ADVERSARIES["features"]
    monkeypatch.setattr(choice, "AFFORDABLE", 100.0)
    exact, cheap = (trained("relu", adversary, aggregation) for aggregation in ("exact", "auto"))
    assert set(cheap.domains.in_use["box"].sum_methods.values()) == {"exact"}
    assert all(torch.equal(cheap.box[name].upper, interval.upper) for name, interval in exact.box.items())
    monkeypatch.setattr(choice, "AFFORDABLE", 0.0)
    assert "moment" in trained("relu", adversary, "auto").domains.in_use["box"].sum_methods.values()


def test_clipped_gradients_are_summed_exactly():
    adversary = UnboundedAdversary(n=2, kappa=0.5)
    exact, moment = (trained("relu", adversary, aggregation) for aggregation in ("exact", "moment"))
    assert set(moment.domains.in_use["box"].sum_methods.values()) == {"exact"}
    assert all(torch.equal(moment.box[name].upper, interval.upper) for name, interval in exact.box.items())


def test_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="Expected `aggregation`"):
        AbstractGradientEngine(network("relu"), loss, ADVERSARIES["labels"], aggregation="loose")
