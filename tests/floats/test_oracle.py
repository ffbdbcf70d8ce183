"""Bounds at the level "real" contain poisoned trainings in rational numbers, compared exactly."""

import random
from fractions import Fraction

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from tests.floats.oracle import RationalNetwork, outside, rational

RUNS = 25
SIZE, STEPS, RATE = 4, 2, 0.125


def network(seed, hidden):
    torch.manual_seed(seed)
    if not hidden:
        return nn.Sequential(nn.Linear(2, 1)).double()
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(STEPS, SIZE, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1e3])
    x[:, 0] = torch.tensor([1e3, -1e3])  # sums that cancel
    return x, torch.randn(STEPS, SIZE, 1, generator=generator, dtype=torch.float64)


def bounds_of(seed, hidden, adversary, settings, **config):
    module, (x, y) = network(seed, hidden), data(seed)
    engine = AbstractGradientEngine(
        module, lambda m, b: nn.functional.mse_loss(m(b[0]), b[1]), adversary, floats="real", **config
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE * 2.0**-20, **settings)
    for batch in zip(x, y, strict=True):
        engine.step([batch], optimizer)
    return [(interval.lower, interval.upper) for interval in engine.box.values()]


def poisoned(seed, hidden, adversary, settings, draw):
    """Train in rational numbers, with n samples of each batch at a corner of what the adversary may do."""
    network_of = RationalNetwork.of(network(seed, hidden), settings.get("momentum", 0), settings.get("weight_decay", 0))
    x, y = data(seed)
    for features, labels in zip(x, y, strict=True):
        rows, targets = rational(features), rational(labels)
        for chosen in draw.sample(range(SIZE), adversary.n):
            rows[chosen] = [entry + draw.choice([-1, 1]) * Fraction(adversary.epsilon) for entry in rows[chosen]]
            targets[chosen] = [entry + draw.choice([-1, 1]) * Fraction(adversary.nu) for entry in targets[chosen]]
        network_of.step(rows, targets, Fraction(RATE * 2.0**-20))
    return network_of.parameters()


CONFIGURATIONS = {
    "exact": {},
    "single": {"dtype": torch.float32},
    "crown": {"method": "crown"},
    "tightest": {"method": "tightest"},
    "crown in single": {"method": "crown", "dtype": torch.float32},
}


@pytest.mark.thinned(5)
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5}, {"weight_decay": 0.25}], ids=str)
@pytest.mark.parametrize("hidden", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("config", CONFIGURATIONS)
def test_no_rational_training_leaves_the_bounds(config, hidden, settings):
    for seed, n, epsilon in ((0, 0, 0.0), (1, 1, 0.01), (2, 4, 1e-7)):
        adversary = BoundedAdversary(n=n, epsilon=epsilon, nu=epsilon)
        bounds = bounds_of(seed, hidden, adversary, settings, **CONFIGURATIONS[config])
        draw = random.Random(seed)
        for _ in range(RUNS if n else 1):
            assert outside(bounds, poisoned(seed, hidden, adversary, settings, draw)) == 0


def test_bounds_without_outward_rounding_are_found(monkeypatch):
    """Planted fault: the bounds' own computation counts as exact."""
    from agt_lightning.arithmetic.floating_point import Arithmetic

    monkeypatch.setattr(Arithmetic, "own_relative", lambda self, count: 0.0)
    still = BoundedAdversary(n=0)
    assert any(
        outside(bounds_of(seed, True, still, {}), poisoned(seed, True, still, {}, random.Random(0)))
        for seed in range(6)
    )
