"""Trainings and bounds in single precision, on each device: every poisoned run stays inside, without a tolerance."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

EPSILON, COUNT, RATE, STEPS = 0.1, 2, 0.2, 4

SAME = 1e-2
"""Of mean widths: those of one device are at most as far from those of another as both can be from real arithmetic."""


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(device: str) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(10, 5, generator=draw).to(device), torch.randint(3, (10,), generator=draw).to(device))
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


def poisoned(module: nn.Module, batch: tuple[Tensor, Tensor], draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Move some samples to corners, half of them where the loss rises, and give them other classes."""
    x, y = batch[0].clone().requires_grad_(), batch[1].clone()
    rows = torch.randperm(len(x), generator=draw)[:COUNT].to(x.device)
    y[rows] = torch.randint(3, (COUNT,), generator=draw).to(y.device)
    (slope,) = torch.autograd.grad(loss(module, (x, y)), x)
    direction = slope if torch.rand((), generator=draw) < 0.5 else torch.randn(x.shape, generator=draw).to(x.device)
    moved = x.detach().clone()
    moved[rows] += (1 - 1e-6) * EPSILON * direction[rows].sign()  # inside even after rounding
    return moved, y


@pytest.mark.parametrize("device", DEVICES)
def test_poisoned_runs_stay_inside(device):
    engine = trained(device)
    assert all(bounds.dtype == torch.float32 for bounds in engine.bounds.values())
    draw = torch.Generator().manual_seed(2)
    for _ in range(30):
        run = network().to(device)
        optimizer = torch.optim.SGD(run.parameters(), lr=RATE)
        for batch in batches(device):
            optimizer.zero_grad()
            loss(run, poisoned(copy.deepcopy(run), batch, draw)).backward()
            optimizer.step()
        assert engine.bounds.contains(run)


@pytest.mark.gpu
def test_bounds_are_those_of_a_cpu():
    host, device = trained("cpu"), trained("cuda")
    assert device.bounds.contains(host.module.to("cuda"))
    assert device.bounds.mean_width() == pytest.approx(host.bounds.mean_width(), rel=SAME)
