"""Whole trainings with replaced, inserted and deleted samples stay in the ball, in their own floating point type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, UnboundedAdversary
from agt_lightning.domains.ball.clipped import Edits

FEATURES, BATCH, STEPS, RATE, KAPPA = 3, 12, 6, 0.2, 0.4
EDITS = ("replace", "insert-delete")


@dataclass(frozen=True)
class Case:
    """A loss of a linear head.

    Args:
        loss: of a batch.
        each: losses of single samples, whose gradients are clipped.
        outputs: of the head.
        weight: of a sample in a batch of so many.
        classes: whether targets are class labels.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    each: Callable[[Tensor, Tensor], Tensor]
    outputs: int
    weight: Callable[[int], float] = lambda size: 1 / size
    classes: bool = False

    def targets(self, scores):
        """Make targets of random numbers (b, K)."""
        return scores.argmax(dim=1) if self.classes else scores


def _squares(f, y):
    return (f - y).square().mean(dim=1)


def _logistic(f, y):
    return F.binary_cross_entropy_with_logits(f, y.sigmoid(), reduction="none").mean(dim=1)


def _entropy(f, y):
    return F.cross_entropy(f, y, reduction="none")


CASES = {
    "one output": Case(F.mse_loss, _squares, 1),
    "sum": Case(lambda f, y: 0.05 * F.mse_loss(f, y, reduction="sum"), _squares, 1, lambda size: 0.05),
    "outputs": Case(F.mse_loss, _squares, 3),
    "part": Case(lambda f, y: 0.3 * F.mse_loss(f, y), _squares, 2, lambda size: 0.3 / size),
    "classes": Case(F.cross_entropy, _entropy, 3, classes=True),
    "logistic": Case(lambda f, y: F.binary_cross_entropy_with_logits(f, y.sigmoid()), _logistic, 1),
}


def batches(case, dtype):
    """The same three batches again and again."""
    generator = torch.Generator().manual_seed(1)
    drawn = [
        (torch.randn(BATCH, FEATURES, generator=generator), torch.randn(BATCH, case.outputs, generator=generator))
        for _ in range(3)
    ]
    return [(x.to(dtype), case.targets(y.to(dtype))) for x, y in drawn]


class Attack:
    """A training that is pushed along a direction, or away from the clean one, by the best changes of each batch."""

    def __init__(self, module, case, adversary, seed):
        self.case, self.adversary, self.generator = case, adversary, torch.Generator().manual_seed(seed)
        self.full = torch.cat([module.weight.detach(), module.bias.detach()[:, None]], dim=1).clone()
        self.direction = torch.randn(self.full.shape, generator=self.generator).to(self.full.dtype)
        self.away = seed % 2 == 1

    def clipped(self, x, y):
        """Each sample's clipped gradient, (b, K, d + 1)."""
        full = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        outputs = (full @ self.full.T).requires_grad_()
        (slope,) = torch.autograd.grad(self.case.each(outputs, y).sum(), outputs)
        rows = slope[:, :, None] * full[:, None, :]
        norms = rows.flatten(1).norm(dim=1)[:, None, None]
        return rows * (self.adversary.kappa / norms).clamp(max=1)

    def strangers(self):
        """Samples along the direction, and others of all sizes."""
        count, dtype = 60, self.full.dtype
        scale = torch.tensor([0.1, 1.0, 10.0, 100.0])[torch.arange(count) % 4, None]
        x = torch.randn(count, FEATURES, generator=self.generator) * scale
        rows = torch.arange(count // 2)
        along = self.direction[rows % self.case.outputs, :FEATURES].to(x.dtype)
        x[rows] = 10 * along * torch.randn(len(rows), 1, generator=self.generator)
        scores = 30 * torch.randn(count, self.case.outputs, generator=self.generator)
        return x.to(dtype), self.case.targets(scores.to(dtype))

    def step(self, x, y, clean):
        """Train on the batch with those changes that push farthest, in another order of the samples."""
        if self.away and bool((self.full - clean).any()):
            self.direction = self.full - clean
        own, new = self.clipped(x, y), self.clipped(*self.strangers())
        pushes = [-(rows * self.direction).sum(dim=(1, 2)) for rows in (own, new)]
        weakest, best = pushes[0].argsort(), pushes[1].argsort(descending=True)
        tried = []
        for gone in range(self.adversary.n + 1):
            for came in {0, self.adversary.n - gone} if self.adversary.edits == "insert-delete" else {gone}:
                rows = torch.cat([own[weakest[gone:]], new[best[:came]]])
                weight = self.case.weight(len(rows))
                total = weight * rows[torch.randperm(len(rows), generator=self.generator)].sum(dim=0)
                tried.append((float(-(total * self.direction).sum()), total))
        self.full = self.full - RATE * max(tried, key=lambda pair: pair[0])[1]


def engine_of(module, case, adversary, **settings):
    return AbstractGradientEngine(
        module, lambda m, batch: case.loss(m(batch[0]), batch[1]), adversary, domains=("ball",), **settings
    )


def largest_shares(name, edits, dtype=torch.float64, n=2, attacks=6):
    """Train, compare every attack with the ball after every step without tolerance, and return the largest shares."""
    case = CASES[name]
    torch.manual_seed(0)
    module = nn.Linear(FEATURES, case.outputs).to(dtype)
    adversary = UnboundedAdversary(n=n, kappa=KAPPA, clip="norm", edits=edits)
    engine, optimizer = engine_of(module, case, adversary), torch.optim.SGD(module.parameters(), lr=RATE)
    runs = [Attack(module, case, adversary, seed) for seed in range(attacks)]
    shares = []
    for step in range(STEPS):
        x, y = batches(case, dtype)[step % 3]
        before = torch.cat([module.weight, module.bias[:, None]], dim=1).detach().clone()
        engine.step([(x, y)], optimizer)
        after = torch.cat([module.weight, module.bias[:, None]], dim=1).detach().double()
        radius = engine.domains.in_use["ball"].radius
        for run in runs:
            run.step(x, y, before)
        distances = [float((run.full.double() - after).norm()) for run in runs]
        assert max(distances) <= radius
        shares.append(max(distances) / radius)
    return shares


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("edits", EDITS)
@pytest.mark.parametrize("name", CASES)
def test_trainings_with_other_samples_stay_in_the_ball(name, edits, dtype):
    assert max(largest_shares(name, edits, dtype)) > 0.6


def test_insertions_nearly_reach_the_ball():
    """A sum over the batch: what comes adds κ along one direction, step after step."""
    shares = largest_shares("sum", "insert-delete", n=1, attacks=10)
    assert shares[0] > 0.99
    assert shares[-1] > 0.8


@pytest.mark.slow
def test_a_clean_training_without_poison_stays_at_its_center():
    """What the ball takes for the clipped mean gradient is what training applies, whatever the factor of the loss."""
    for case in CASES.values():
        torch.manual_seed(0)
        module = nn.Linear(FEATURES, case.outputs).double()
        engine = engine_of(module, case, UnboundedAdversary(n=0, kappa=KAPPA, clip="norm"))
        engine.step([batches(case, torch.float64)[0]], torch.optim.SGD(module.parameters(), lr=RATE))
        assert engine.domains.in_use["ball"].radius < 1e-12


def test_frozen_biases_take_no_part_in_the_norm():
    torch.manual_seed(0)
    module = nn.Linear(FEATURES, 1).double()
    module.bias.requires_grad_(False)
    engine = engine_of(module, CASES["one output"], UnboundedAdversary(n=0, kappa=KAPPA, clip="norm"))
    engine.step([batches(CASES["one output"], torch.float64)[0]], torch.optim.SGD([module.weight], lr=RATE))
    assert engine.domains.in_use["ball"].radius < 1e-12


def test_replacements_in_one_of_two_micro_batches_are_those_in_one_batch():
    radii = []
    for parts in (1, 2):
        torch.manual_seed(0)
        module = nn.Linear(FEATURES, 1).double()
        engine = engine_of(module, CASES["one output"], UnboundedAdversary(n=2, kappa=KAPPA, clip="norm"))
        optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
        for x, y in batches(CASES["one output"], torch.float64):
            size = BATCH // parts
            engine.step(list(zip(x.split(size), y.split(size), strict=True)), optimizer)
        radii.append(engine.domains.in_use["ball"].radius)
    assert radii[0] == pytest.approx(radii[1], rel=1e-9)


def test_a_bound_that_is_a_tenth_too_small_is_noticed(monkeypatch):
    whole = Edits.largest
    monkeypatch.setattr(Edits, "largest", lambda self, samples: 0.9 * whole(self, samples))
    with pytest.raises(AssertionError):
        largest_shares("sum", "insert-delete", n=1, attacks=10)


@pytest.mark.slow
def test_what_is_not_covered_is_refused_with_a_way_out():
    x, y = batches(CASES["one output"], torch.float64)[0]

    def problems(module, adversary):
        engine = engine_of(module.double(), CASES["one output"], adversary)
        return engine.problems((x, y), torch.optim.SGD(module.parameters(), lr=RATE))

    by_norm = UnboundedAdversary(n=1, kappa=KAPPA, clip="norm")
    (value,) = problems(nn.Linear(FEATURES, 1), UnboundedAdversary(n=1, kappa=KAPPA, clip="value"))
    assert 'covers `clip="norm"`' in value
    assert problems(nn.Linear(FEATURES, 1), by_norm) == []
    network = nn.Sequential(nn.Linear(FEATURES, 2), nn.ReLU(), nn.Linear(2, 1))
    (layers,) = problems(network, by_norm)
    assert "one linear layer, but 2 are trained" in layers
    network[0].requires_grad_(False)
    assert problems(network, by_norm) == []


@pytest.mark.slow
def test_beside_a_box_both_contain_the_run_and_the_ball_is_in_use():
    case = CASES["one output"]
    torch.manual_seed(0)
    module = nn.Linear(FEATURES, 1).double()
    adversary = UnboundedAdversary(n=2, kappa=KAPPA, clip="norm", edits="insert-delete")
    engine = AbstractGradientEngine(
        module, lambda m, batch: case.loss(m(batch[0]), batch[1]), adversary, domains=("box", "ball")
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    run = Attack(module, case, adversary, 0)
    for x, y in batches(CASES["one output"], torch.float64):
        engine.step([(x, y)], optimizer)
        run.step(x, y, run.full)
        poisoned = {"weight": run.full[:, :-1], "bias": run.full[:, -1]}
        assert all(bool(engine.box[name].contains(value)) for name, value in poisoned.items())
    assert set(engine.parameter_sets) == {"ball"}
