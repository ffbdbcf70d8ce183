"""Real poisoned trainings stay inside the bounds: thousands of them, by four kinds of attack."""

import pytest
import torch

from agt_lightning import AbstractGradientEngine, BoundedAdversary, UnboundedAdversary
from tests.engine.attacks import LOSSES, Attacks, assert_contained, data, network

ADVERSARIES = [
    pytest.param("mse", BoundedAdversary(n=2, epsilon=0.3, p=2), id="mse-l2"),
    pytest.param("ce", BoundedAdversary(n=2, epsilon=0.4, p=1), id="ce-l1"),
    pytest.param("mse", BoundedAdversary(n=2, nu=0.5, q=2), id="mse-labels-l2"),
    pytest.param("huber", BoundedAdversary(n=2, nu=0.5, q=1), id="huber-labels-l1"),
    pytest.param(
        "ce",
        BoundedAdversary(n=2, epsilon=torch.tensor([0.5, 0.0, 0.1]).double(), p=2, nu=1, q=0),
        id="ce-each-feature",
    ),
    pytest.param("bce", BoundedAdversary(n=2, epsilon=0.5, bounds=(-4, 0.2)), id="bce-range"),
    pytest.param("mse", BoundedAdversary(n=2, epsilon=0.2), id="mse-features"),
    pytest.param("mse", BoundedAdversary(n=2, epsilon=0.1, nu=0.3), id="mse-both"),
    pytest.param("huber", BoundedAdversary(n=1, epsilon=0.2, nu=0.2), id="huber-both"),
    pytest.param("ce", BoundedAdversary(n=2, epsilon=0.2), id="ce-features"),
    pytest.param("ce", BoundedAdversary(n=1, nu=1, q=0), id="ce-flips"),
    pytest.param("ce", BoundedAdversary(n=1, epsilon=0.1, nu=1, q=0), id="ce-both"),
    pytest.param("bce", BoundedAdversary(n=1, epsilon=0.1, nu=1, q=0), id="bce-both"),
    pytest.param("ce", BoundedAdversary(n=9, epsilon=0.05), id="ce-whole-batch"),
    pytest.param("ce", UnboundedAdversary(n=1, kappa=0.1), id="value-clipping"),
    pytest.param("mse", UnboundedAdversary(n=1, kappa=0.5, clip="norm"), id="norm-clipping"),
]


@pytest.mark.thinned(10)
@pytest.mark.parametrize("hidden", [(), (4,), (3, 3)], ids=["linear", "one-hidden", "two-hidden"])
@pytest.mark.parametrize(("kind", "adversary"), ADVERSARIES)
def test_bounds_contain_every_poisoned_run(kind, adversary, hidden):
    captured: dict[object, object] = {}
    reached = 0.0
    for seed in range(4):
        reached = max(reached, largest_reach(kind, adversary, hidden, seed, captured))
    # The attacks are not idle: they use a part of the room that the bounds leave.
    assert reached > 0.02


def largest_reach(kind, adversary, hidden, seed, captured):
    """Train clean, bounded and attacked; the share of the box's half-width that some attack used."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    module = network(kind, hidden)
    rate, decay = (0.05, 0.3)[seed % 2], (0.0, 0.2)[seed // 2]
    engine = AbstractGradientEngine(module, lambda m, batch: LOSSES[kind](m(batch[0]), batch[1]), adversary)
    engine._recordings._kinds = captured
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, weight_decay=decay)
    attacks = Attacks(module, kind, adversary, rate, decay, generator)
    for x, y in data(kind, generator):
        attacks.step(x, y)
        engine.step([(x, y)], optimizer)
        assert_contained(engine, attacks.runs)
    return max(
        float(
            (
                (attacks.runs[name] - module.get_parameter(name).detach()).abs().amax(0) / box.radius.clamp(min=1e-12)
            ).max()
        )
        for name, box in engine.box.items()
    )


def test_an_attack_beyond_the_adversary_leaves_the_bounds():
    """The check has teeth: an attacker with more samples than certified is caught outside."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    module = network("ce", ())
    weak, strong = BoundedAdversary(n=1, nu=1, q=0), BoundedAdversary(n=5, nu=1, q=0)
    engine = AbstractGradientEngine(module, lambda m, batch: LOSSES["ce"](m(batch[0]), batch[1]), weak)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    attacks = Attacks(module, "ce", strong, 0.1, 0.0, generator)

    def attack():
        for x, y in data("ce", generator):
            attacks.step(x, y)
            engine.step([(x, y)], optimizer)
            assert_contained(engine, attacks.runs)

    with pytest.raises(AssertionError, match="left its bounds"):
        attack()
