"""Dropout in training: bounds for the masks that Lightning drew."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from agt_lightning import BoundedAdversary, CertifiedTraining, UncertifiableError
from agt_lightning.capture import capture
from agt_lightning.capture.dropout import RandomState, draw_masks
from agt_lightning.engine import AbstractGradientEngine

ROUNDING = 1e-9
"""One-sided; far above float64 rounding of a few steps."""


class Dropping(L.LightningModule):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        layers = [nn.Linear(3, 6), nn.ReLU(inplace=inplace), nn.Dropout(0.4), nn.Linear(6, 6), nn.Dropout(0.2)]
        self.net = nn.Sequential(*layers, nn.Linear(6, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("inplace", [False, True])
def test_training_with_dropout_is_unchanged_and_certified(fit, loader, inplace):
    def trained(*callbacks):
        torch.manual_seed(0)
        module = Dropping(inplace)
        fit(module, loader("number", 12, 5), *callbacks, max_epochs=2)
        return module

    plain = trained()
    certified = CertifiedTraining(BoundedAdversary(n=0))
    module = trained(certified)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), module.parameters(), strict=True))
    assert certified.bounds.mean_width() < 1e-4
    strong = CertifiedTraining(BoundedAdversary(n=1, epsilon=0.1))
    trained(strong)
    assert strong.bounds.mean_width() > 1e-3


def test_poisoned_runs_with_the_same_masks_stay_inside():
    torch.manual_seed(0)
    module = Dropping().double()
    loss = lambda m, batch: m.training_step(batch, 0)  # noqa: E731
    adversary = BoundedAdversary(n=2, epsilon=0.3)
    engine = AbstractGradientEngine(module, loss, adversary)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    runs = [{k: p.detach().clone() for k, p in module.named_parameters()} for _ in range(40)]
    for _ in range(4):
        batch = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
        graph = engine.objective(batch).program.graph
        state = RandomState.now()
        engine.step([batch], optimizer)
        masks = list(draw_masks(graph.masks, torch.device("cpu"), state).values())
        runs = [attacked(module, run, batch, masks, adversary) for run in runs]
        for name, box in engine.box.items():
            assert all(box.contains(run[name], ROUNDING) for run in runs)


def attacked(module, run, batch, masks, adversary):
    """One poisoned step: a random pair of samples moved to a random corner."""
    x, y = batch
    x = x.clone()
    rows = torch.randperm(len(x))[: adversary.n]
    x[rows] += adversary.epsilon * torch.sign(torch.randn(adversary.n, 3, dtype=torch.float64))

    def loss(parameters, x, y, first, second):
        h = functional_call(module.net[0], {k[6:]: v for k, v in parameters.items() if k.startswith("net.0.")}, x)
        h = functional_call(
            module.net[3], {k[6:]: v for k, v in parameters.items() if k.startswith("net.3.")}, h.relu() * first
        )
        out = functional_call(
            module.net[5], {k[6:]: v for k, v in parameters.items() if k.startswith("net.5.")}, h * second
        )
        return (out - y).square().sum()

    gradients = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(run, x, y, *masks)
    return {k: run[k] - 0.1 * gradients[k].mean(0) for k in run}


@pytest.mark.parametrize("layer", [nn.Dropout(0.4), nn.Dropout1d(0.4), nn.Dropout2d(0.4)])
def test_masks_are_those_of_the_layer(layer):
    x = torch.rand(3, 4, 5, 5) + 1 if isinstance(layer, nn.Dropout2d) else torch.rand(3, 4, 5) + 1
    owner = nn.Sequential(layer)
    graph = capture(owner, lambda leaves: owner(leaves[0]), [x])
    state = RandomState.now()
    dropped = owner(x)
    (mask,) = draw_masks(graph.masks, torch.device("cpu"), state).values()
    assert torch.equal(dropped, x * mask)


class DrawsInAHook(Dropping):
    def on_train_batch_start(self, batch, batch_idx):
        torch.rand(1)


class DrawsInTheStep(Dropping):
    def training_step(self, batch, batch_idx):
        self.log("noise", torch.rand(()))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [DrawsInAHook, DrawsInTheStep])
def test_other_random_numbers_do_not_disturb_the_masks(kind, fit, loader):
    module, certified = kind(), CertifiedTraining(BoundedAdversary(n=1, epsilon=0.1))
    fit(module, loader("number", 12, 5), certified)
    assert certified.bounds.contains(module)


def test_masks_that_cannot_be_drawn_again_stop_the_training(fit, loader):
    class Restless(Dropping):
        def training_step(self, batch, batch_idx):
            torch.rand(1)
            hidden = nn.functional.dropout(batch[0], 0.5)
            return nn.functional.mse_loss(self.net(hidden), batch[1])

    with pytest.raises(UncertifiableError, match="random numbers"):
        fit(Restless(), loader("number", 12, 5), CertifiedTraining(BoundedAdversary(n=1, epsilon=0.1)))
