"""Whole poisoned trainings stay in the ball after each step: random, greedy and adaptive attacks that really train."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.domains.ball.poison_bounds import PoisonBounds, WorstPoison
from agt_lightning.errors import UncertifiableError
from tests.domains.loss_forms import Loss
from tests.engine.attacks import CLASSES, FEATURES, LOSSES, RUNS, Attacks, assert_contained, data, network

LEAST = 1e-9
"""Radius below which the share that a run reaches is not counted: that of rounding is beside the point here."""

ADVERSARIES = [
    pytest.param("mse", BoundedAdversary(n=1, epsilon=0.02, p=2), id="mse-features"),
    pytest.param("mse", BoundedAdversary(n=2, nu=0.1, q=2), id="mse-labels"),
    pytest.param("huber", BoundedAdversary(n=1, epsilon=0.02, nu=0.05), id="huber-both"),
    pytest.param("bce", BoundedAdversary(n=1, nu=1, q=0), id="bce-flips"),
    pytest.param("bce", BoundedAdversary(n=1, epsilon=0.05, p=1, nu=1, q=0), id="bce-both"),
    pytest.param("ce", BoundedAdversary(n=1, nu=1, q=0), id="ce-flips"),
    pytest.param("ce", BoundedAdversary(n=2, epsilon=0.03), id="ce-features"),
]


@dataclass
class Schedule:
    """Learning rates and decay of a training."""

    rate: float
    decay: float
    falling: float

    def at(self, step: int) -> float:
        """Of one step."""
        return self.rate / (1 + self.falling * step)


SCHEDULES = [Schedule(0.02, 0.0, 0.0), Schedule(0.1, 0.1, 0.2), Schedule(0.3, 0.0, 0.5)]


@dataclass
class Training:
    """A clean training with its bounds, beside `RUNS` poisoned ones.

    The loss is that of its kind, also if it is written in another way.
    """

    kind: str
    adversary: BoundedAdversary
    hidden: tuple[int, ...]
    schedule: Schedule
    domains: tuple[str, ...]
    seed: int
    loss: Loss | None = None
    shares: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        torch.manual_seed(self.seed)
        self.module = network(self.kind, self.hidden)
        self.initialize()
        loss = LOSSES[self.kind] if self.loss is None else self.loss
        self.engine = AbstractGradientEngine(
            self.module, lambda m, batch: loss(m(batch[0]), batch[1]), self.adversary, domains=self.domains
        )
        rate, decay = self.schedule.rate, self.schedule.decay
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=rate, weight_decay=decay)
        self.attacks = Attacks(self.module, self.kind, self.adversary, rate, decay, self.generator)

    def run(self, epochs: int) -> float:
        """Share of the radius that some run reached, until the bounds diverge if they do."""
        for step, (x, y) in enumerate(self.batches() * epochs):
            self.attacks.rate = self.schedule.at(step)
            self.optimizer.param_groups[0]["lr"] = self.schedule.at(step)
            self.adapt()
            self.attacks.step(x, y)
            try:
                self.engine.step([(x, y)], self.optimizer)
            except UncertifiableError as error:  # no claim, nothing to check
                assert "the bounds diverged" in str(error)  # noqa: PT017
                break
            self.check()
        return max(self.shares)

    def initialize(self) -> None:
        """Units at zero for every other seed."""
        for bias in (layer.bias for layer in self.module if isinstance(layer, nn.Linear) and self.seed % 2):
            bias.data.zero_()

    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Data of one epoch."""
        return data(self.kind, self.generator)

    def displacement(self) -> dict[str, torch.Tensor]:
        """Of each poisoned run from the nominal parameters."""
        return {name: value - self.module.get_parameter(name).detach() for name, value in self.attacks.runs.items()}

    def adapt(self) -> None:
        """Every third run goes on along the way that it has come, so that the distance grows most."""
        for name, moved in self.displacement().items():
            far = moved.abs().amax() > 0
            self.attacks.direction[name][::3] = moved[::3] if far else self.attacks.direction[name][::3]

    def check(self) -> None:
        """No run outside of the ball, nor of its bounds by parameter."""
        moved = torch.cat([value.flatten(1) for value in self.displacement().values()], dim=1)
        radius = self.engine.domains.in_use["ball"].radius
        distance = float(moved.norm(dim=1).max())
        assert len(moved) == RUNS
        assert distance <= radius, f"left the ball: {distance} > {radius}"
        assert_contained(self.engine, self.attacks.runs)
        self.shares.append(distance / max(radius, LEAST))


class TrainingNearKinks(Training):
    """A batch of which a quarter is poisoned; each unit is near zero for one of the samples."""

    def initialize(self) -> None:
        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=self.generator)

        self.batch = noise(24, FEATURES), noise(24, CLASSES)
        first = self.module[0]
        through = (first.weight * self.batch[0][: len(first.bias)]).sum(dim=1)
        first.bias.data = 0.02 * noise(len(through)) - through.detach()

    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [self.batch]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("domains", [("ball",), ("box", "ball")], ids="-".join)
def test_trainings_poisoned_near_kinks_stay_in_the_ball(domains, p, monkeypatch):
    decided = []
    whole = PoisonBounds.worst

    def worst(self: PoisonBounds, *arguments: object) -> WorstPoison:
        found = whole(self, *arguments)
        decided.append(found.rest < whole(replace(self, apart=None), *arguments).rest)
        return found

    monkeypatch.setattr(PoisonBounds, "worst", worst)
    adversary = BoundedAdversary(n=6, epsilon=0.03, p=p)
    for seed in range(2):
        training = TrainingNearKinks("mse", adversary, (8,), SCHEDULES[1], domains, seed)
        assert training.run(epochs=6) > 0.05
    assert sum(decided) > len(decided) / 2


@pytest.mark.thinned(4)
@pytest.mark.parametrize("domains", [("ball",), ("box", "ball")], ids="-".join)
@pytest.mark.parametrize("hidden", [(), (4,)], ids=["linear", "hidden"])
@pytest.mark.parametrize(("kind", "adversary"), ADVERSARIES)
def test_poisoned_trainings_stay_in_the_ball(kind, adversary, hidden, domains):
    number = [parameter.values[1] for parameter in ADVERSARIES].index(adversary)
    schedule = SCHEDULES[(number + len(hidden)) % 3]
    assert Training(kind, adversary, hidden, schedule, domains, number).run(epochs=2) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: f"rate-{schedule.rate}")
@pytest.mark.parametrize("domains", [("ball",), ("box", "ball")], ids="-".join)
@pytest.mark.parametrize("hidden", [(), (4,)], ids=["linear", "hidden"])
@pytest.mark.parametrize(("kind", "adversary"), ADVERSARIES)
def test_long_poisoned_trainings_stay_in_the_ball(kind, adversary, hidden, domains, schedule, seed):
    assert Training(kind, adversary, hidden, schedule, domains, seed).run(epochs=4) > 0.001


def test_an_attack_beyond_the_adversary_leaves_the_ball():
    """The check has teeth: one poisoned sample is certified, five attack."""
    schedule = SCHEDULES[1]
    training = Training("ce", BoundedAdversary(n=1, nu=1, q=0), (), schedule, ("ball",), 0)
    training.attacks.adversary = BoundedAdversary(n=5, nu=1, q=0)
    with pytest.raises(AssertionError, match="left the ball"):
        training.run(epochs=2)
