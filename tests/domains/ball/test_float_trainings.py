"""Whole trainings in their own floating point type, poisoned or not and executed in many ways, stay in the ball."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from tests.engine.attacks import LOSSES

RATE, STEPS, BATCH, FEATURES, CLASSES = 0.05, 4, 24, 3, 3


@dataclass(frozen=True)
class Way:
    """A way to execute a training.

    Args:
        shuffled: whether each batch is in another order.
        foreach: whether the optimizer moves all parameters at once.
        threads: number of threads.
    """

    shuffled: bool
    foreach: bool
    threads: int


WAYS = [Way(False, False, 1), Way(True, True, 2), Way(True, False, 2), Way(False, True, 1)]

ADVERSARIES = [
    pytest.param("mse", BoundedAdversary(n=1, nu=0.0), id="clean"),
    pytest.param("mse", BoundedAdversary(n=2, nu=0.05), id="mse-labels"),
    pytest.param("huber", BoundedAdversary(n=2, epsilon=0.01, nu=0.05), id="huber-both"),
    pytest.param("bce", BoundedAdversary(n=1, nu=1, q=0), id="bce-flips"),
    pytest.param("ce", BoundedAdversary(n=1, nu=1, q=0), id="ce-flips"),
    pytest.param("ce", BoundedAdversary(n=2, epsilon=0.01), id="ce-features"),
]


def network(kind: str, hidden: tuple[int, ...], dtype: torch.dtype) -> nn.Sequential:
    widths = [FEATURES, *hidden, 1 if kind == "bce" else CLASSES]
    layers = [nn.Linear(i, o) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1]).to(dtype)


def batches(kind: str, dtype: torch.dtype, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    drawn = []
    for _ in range(STEPS):
        x = torch.randn(BATCH, FEATURES, generator=generator).to(dtype)
        index = torch.randint(0, CLASSES, (BATCH,), generator=generator)
        y = {"ce": index, "bce": (index > 0).to(dtype)[:, None]}.get(kind)
        drawn.append((x, torch.randn(BATCH, CLASSES, generator=generator).to(dtype) if y is None else y))
    return drawn


class Run:
    """A poisoned training beside the certified one."""

    def __init__(self, module: nn.Module, kind: str, adversary: BoundedAdversary, way: Way, seed: int) -> None:
        self.module, self.kind, self.adversary, self.way = copy.deepcopy(module), kind, adversary, way
        self.generator = torch.Generator().manual_seed(seed)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=RATE, weight_decay=0.01, foreach=way.foreach)

    def poisoned(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Corners of what the adversary can do to the first samples."""
        x, y = x.clone(), y.clone()
        rows, epsilon, nu = slice(0, self.adversary.n), self.adversary.epsilon, self.adversary.nu
        # The limits are those of real arithmetic: a step toward zero keeps a rounded sum within them.
        if epsilon:
            x[rows] += (epsilon * (1 - 1e-5) * torch.sign(torch.randn(x[rows].shape, generator=self.generator))).to(
                x.dtype
            )
        if self.kind == "ce" and nu:
            y[rows] = (y[rows] + 1) % CLASSES
        elif self.kind == "bce" and nu:
            y[rows] = 1 - y[rows]
        elif nu:
            y[rows] += (nu * (1 - 1e-5) * torch.sign(torch.randn(y[rows].shape, generator=self.generator))).to(y.dtype)
        return x, y

    def step(self, x: Tensor, y: Tensor) -> None:
        x, y = self.poisoned(x, y)
        if self.way.shuffled:
            order = torch.randperm(len(x), generator=self.generator)
            x, y = x[order], y[order]
        before = torch.get_num_threads()
        torch.set_num_threads(self.way.threads)
        try:
            self.optimizer.zero_grad()
            LOSSES[self.kind](self.module(x), y).backward()
            self.optimizer.step()
        finally:
            torch.set_num_threads(before)


def largest_share(module: nn.Module, kind: str, adversary: BoundedAdversary, dtype: torch.dtype) -> float:
    """Train, and compare every run with ball and box after every step, without any tolerance."""
    generator = torch.Generator().manual_seed(1)
    loss = LOSSES[kind]
    engine = AbstractGradientEngine(module, lambda m, batch: loss(m(batch[0]), batch[1]), adversary, domains=("ball",))
    runs = [Run(module, kind, adversary, way, seed) for seed, way in enumerate(WAYS)]
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=RATE, weight_decay=0.01)
    largest = 0.0
    for x, y in batches(kind, dtype, generator):
        engine.step([(x, y)], optimizer)
        radius = engine.domains.in_use["ball"].radius
        for run in runs:
            run.step(x, y)
            pairs = zip(run.module.parameters(), module.parameters(), strict=True)
            distance = float(
                torch.cat([(p.detach().double() - q.detach().double()).flatten() for p, q in pairs]).norm()
            )
            assert distance <= radius
            assert engine.bounds.contains(run.module)
            largest = max(largest, distance / radius)
    return largest


@pytest.mark.thinned(5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("hidden", [(), (5,), (4, 3)], ids=["linear", "hidden", "deep"])
@pytest.mark.parametrize(("kind", "adversary"), ADVERSARIES)
def test_executions_stay_in_ball_and_box(kind, adversary, hidden, dtype):
    torch.manual_seed(len(hidden))
    assert largest_share(network(kind, hidden, dtype), kind, adversary, dtype) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "adversary", [BoundedAdversary(n=1, nu=0.0), BoundedAdversary(n=1, nu=0.1)], ids=["clean", "labels"]
)
def test_executions_on_frozen_features_stay_in_ball_and_box(adversary, dtype):
    torch.manual_seed(0)
    frozen = nn.Sequential(nn.Linear(FEATURES, 6), nn.ReLU()).requires_grad_(False)
    module = nn.Sequential(frozen, nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, CLASSES)).to(dtype)
    assert largest_share(module, "mse", adversary, dtype) >= 0


@pytest.mark.slow
def test_labels_alone_on_frozen_features_poison_no_features():
    """Rounding makes an interval of every frozen feature, but that is no poison."""
    torch.manual_seed(0)
    frozen = nn.Sequential(nn.Linear(FEATURES, 6), nn.ReLU()).requires_grad_(False)
    head = nn.Linear(6, CLASSES)
    x, y = batches("mse", torch.float64, torch.Generator().manual_seed(0))[0]
    radii = []
    for module, features in ((nn.Sequential(frozen, head), x), (nn.Sequential(copy.deepcopy(head)), None)):
        module = module.double()
        features = frozen.double()(x) if features is None else features
        engine = AbstractGradientEngine(
            module, lambda m, b: nn.functional.mse_loss(m(b[0]), b[1]), BoundedAdversary(n=2, nu=0.1), domains=("ball",)
        )
        engine.step([(features, y)], torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=RATE))
        radii.append(engine.domains.in_use["ball"].radius)
    assert radii[0] == pytest.approx(radii[1], rel=1e-9)
