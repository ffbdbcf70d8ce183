"""Trainings of the duel, poisoned at every step along the gradient of one test output at a time."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate

from recipes.train import train


def poisoned_output(module, batch, poison, rate, x):
    """The output at ``x`` after one step for each entry of ``poison``, differentiable in it."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    features, classes = batch
    for moved in poison:
        logits = torch.func.functional_call(module, parameters, (features + moved,))
        loss = F.binary_cross_entropy_with_logits(logits, classes)
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        parameters = {name: p - rate * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
    return torch.func.functional_call(module, parameters, (x,))


def worst_output(module, batch, x, *, steps, rate, epsilon, sign):
    """The output farthest in the direction of ``sign`` that three rounds of an attack on every batch reach."""
    poison = torch.zeros(steps, *batch[0].shape, dtype=x.dtype)
    best = -torch.inf
    for _ in range(4):
        poison.requires_grad_()
        output = sign * poisoned_output(module, batch, poison, rate, x).sum()
        best = max(best, output.item())
        (gradient,) = torch.autograd.grad(output, poison)
        poison = epsilon * gradient.sign()
    return sign * best


@pytest.mark.parametrize(
    ("experiment", "overrides"),
    [
        ("mibp_moons", ["data.samples=30", "data.held_out=20", "model.hidden=[40]", "trainer.max_epochs=3"]),
        ("mibp_iris", ["model.hidden=[40]", "data.species=[versicolor,virginica]"]),
    ],
)
def test_no_poisoned_training_leaves_the_bounds_of_an_output(composed, experiment, overrides):
    config = composed(f"experiment={experiment}", *overrides, "optimizer.lr=0.5", "logger=none", "seed=5")
    run = train(config)
    (batch,) = run.datamodule.train_dataloader()
    L.seed_everything(config.seed, verbose=False)
    start = instantiate(config.model)
    settings = {"steps": config.trainer.max_epochs, "rate": 0.5, "epsilon": config.adversary.epsilon}
    x, y = run.datamodule.splits["test"]
    bounds = run.model.bound_forward(x[:6])
    for lower, upper, one in zip(bounds.lower, bounds.upper, x[:6], strict=True):
        reached = [worst_output(start, batch, one[None], **settings, sign=sign) for sign in (-1, 1)]
        assert lower <= reached[0] < run.module(one[None]) < reached[1] <= upper
        assert (reached[1] - reached[0]) > 0.1 * (upper - lower)  # both are about the same thing
    certified = run.model.certify(x)
    assert run.results["certified accuracy"] == (certified.certified & (certified.label == y)).double().mean()
    assert run.results["certified accuracy"] <= run.results["nominal accuracy"]
