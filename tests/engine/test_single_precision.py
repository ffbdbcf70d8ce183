"""Trainings and bounds in single precision, on each device: every poisoned run stays inside, without a tolerance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

EPSILON, COUNT, RATE, STEPS = 0.1, 2, 0.2, 2

CLASSES = 3

SAME = 1e-2
"""Of mean widths: those of one device are at most as far from those of another as both can be from real arithmetic."""


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def batches(device: str) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(10, 5, generator=draw).to(device), torch.randint(CLASSES, (10,), generator=draw).to(device))
        for _ in range(STEPS)
    ]


def trained(device: str) -> AbstractGradientEngine:
    module = network().to(device)
    adversary = BoundedAdversary(n=COUNT, epsilon=EPSILON, nu=1, q=0)
    engine = AbstractGradientEngine(module, loss, adversary, dtype=torch.float32)
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    for batch in batches(device):
        engine.step([batch], optimizer)
    return engine


def poisoned(module: nn.Module, batch: tuple[Tensor, Tensor], element: int, sign: float) -> tuple[Tensor, Tensor]:
    """Poison the samples, and as it serves most, whose gradients move one element of the parameters farthest."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def push(x: Tensor, y: Tensor) -> Tensor:
        slopes = grad(lambda values: F.cross_entropy(functional_call(module, values, x), y))(parameters)
        return -sign * torch.cat([slope.flatten() for slope in slopes.values()])[element]

    x, y = batch
    choices = []
    for label in range(CLASSES):
        labels = torch.full_like(y, label)
        corner = x + (1 - 1e-6) * EPSILON * vmap(grad(push))(x, labels).sign()  # inside even after rounding
        choices.append((vmap(push)(corner, labels), corner, labels))
    pushes, corners, labels = (torch.stack(each) for each in zip(*choices, strict=True))
    best, choice = pushes.max(dim=0)
    rows = (best - vmap(push)(x, y)).topk(COUNT).indices
    x, y = x.clone(), y.clone()
    x[rows], y[rows] = corners[choice[rows], rows], labels[choice[rows], rows]
    return x, y


@pytest.mark.parametrize("device", DEVICES)
def test_poisoned_runs_stay_inside(device):
    engine = trained(device)
    assert all(bounds.dtype == torch.float32 for bounds in engine.bounds.values())
    elements = sum(parameter.numel() for parameter in engine.module.parameters())
    for element in range(0, elements, 3):
        run = network().to(device)
        optimizer = torch.optim.SGD(run.parameters(), lr=RATE)
        for batch in batches(device):
            optimizer.zero_grad()
            loss(run, poisoned(run, batch, element, 1.0 if element % 2 else -1.0)).backward()
            optimizer.step()
        assert engine.bounds.contains(run)


@pytest.mark.gpu
def test_bounds_are_those_of_a_cpu():
    host, device = trained("cpu"), trained("cuda")
    assert device.bounds.contains(host.module.to("cuda"))
    assert device.bounds.mean_width() == pytest.approx(host.bounds.mean_width(), rel=SAME)
