"""Domains side by side help each other, and one that is lost leaves the others as they are."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.domains.ball import BallDomain
from agt_lightning.domains.box import BoxDomain
from agt_lightning.domains.family import chosen_domains


def trained(domains, *, steps=3, frozen=False):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    module[0].requires_grad_(not frozen)
    engine = AbstractGradientEngine(
        module, lambda m, b: F.mse_loss(m(b[0]), b[1]), BoundedAdversary(n=2, epsilon=0.05, nu=0.1), domains=domains
    )
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.05)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = (torch.randn(12, width, generator=generator, dtype=torch.float64) for width in (3, 1))
        engine.step([(x, y)], optimizer)
    return engine


@pytest.mark.parametrize(("domain", "other"), [(BallDomain, "box"), (BoxDomain, "ball")])
def test_each_is_given_what_the_other_found_of_the_layers(domain, other, monkeypatch):
    received, bound_step = [], domain.bound_step

    def recorded(self, step, value_bounds):
        received.append([dict(bounds.clean) for bounds in value_bounds])
        return bound_step(self, step, value_bounds)

    monkeypatch.setattr(domain, "bound_step", recorded)
    trained((domain.name,))
    assert received == [[]] * len(received)
    received.clear()
    trained((domain.name, other))
    assert all(len(bounds) == 1 and len(bounds[0]) == 2 for bounds in received), "bounds of both layers"


def test_a_ball_beside_a_box_is_narrower_and_the_box_no_wider():
    ball, box, both = (trained(domains) for domains in (("ball",), ("box",), ("box", "ball")))
    radius = [engine.domains.in_use["ball"].radius for engine in (ball, both)]
    assert radius[1] < radius[0]
    assert both.bounds.mean_width() <= min(ball.bounds.mean_width(), box.bounds.mean_width())


def test_a_single_name_is_a_choice():
    assert list(chosen_domains("ball")) == ["ball"]


@pytest.mark.parametrize("choice", [[], ["box", "box"], ["sphere"], [int], "all"])
def test_unknown_domains_are_refused(choice):
    with pytest.raises(ValueError, match="Expected `domains`"):
        chosen_domains(choice)
