"""The engine's steps in a loop of one's own."""

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, UncertifiableError
from agt_lightning.aggregation.mean_clipping import MeanNormClipping


def loss(module, batch):
    return nn.functional.mse_loss(module(batch[0]), batch[1])


def test_clipping_is_refused_by_a_domain_that_does_not_cover_it_without_a_check_before():
    torch.manual_seed(0)
    module, clipping = nn.Linear(2, 1), MeanNormClipping(0.1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    adversary = BoundedAdversary(n=1, epsilon=0.1)
    engine = AbstractGradientEngine(module, loss, adversary, domains=("box", "ball"), clipping=clipping)
    batch = (torch.randn(8, 2), torch.randn(8, 1))
    loss(module, batch).backward()
    bounds = engine.bound_gradient([batch])
    engine.verify(bounds, [batch])
    with pytest.raises(UncertifiableError, match="does not cover clipping of the mean gradient"):
        engine.clip(bounds, clipping, optimizer)
    assert any("clipping" in problem for problem in engine.problems(batch, optimizer))


@pytest.mark.parametrize(
    ("trained", "objective"),
    [
        (False, loss),
        (True, lambda module, batch: nn.functional.mse_loss(module(batch[0]).detach(), batch[1])),
        (True, lambda module, batch: (batch[0].sum(dim=1) * batch[1][:, 0]).mean()),
    ],
    ids=["frozen", "detached", "not read"],
)
def test_a_loss_that_trains_no_parameter_names_all_ways_out(trained, objective):
    module = nn.Linear(2, 1).requires_grad_(trained)
    engine = AbstractGradientEngine(module, objective, BoundedAdversary(n=1, epsilon=0.1))
    problems = engine.problems((torch.randn(8, 2), torch.randn(8, 1)), None)
    (problem,) = [each for each in problems if "trains no parameter" in each]
    for way_out in ("Return the loss of the network", "leave out `detach`", "requires_grad_(True)"):
        assert way_out in problem
