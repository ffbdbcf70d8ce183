"""Convolutional networks: no width without poison, and real poisoned trainings stay inside the bounds."""

from dataclasses import dataclass

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CertifiedTraining
from tests.engine.attacks import Attacks, assert_contained
from tests.lightning.conftest import NOISE

ZERO = 1e-8
"""More than the width that rounding leaves without poison, where parameters are of size one; attention and layer
normalization leave 5e-10, all other layers less than 1e-12."""

CLASSES, BATCH, STEPS, RUNS = 3, 6, 3, 24
RATE = 0.02


class Residual(nn.Module):
    """``x + f(x)`` with normalization inside."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.norm = norm
        self.second = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return (x + self.second(self.norm(self.first(x)).relu())).relu()


class Mixer(nn.Module):
    """Mixing of tokens, then of channels, each with layer normalization and a residual connection."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(channels), nn.LayerNorm(channels)])
        self.tokens = nn.Sequential(nn.Linear(tokens, 4), nn.ReLU(), nn.Linear(4, tokens))
        self.channels = nn.Sequential(nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, channels))

    def forward(self, x):
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 3, 2),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(3, CLASSES),
    )


def running_statistics():
    norm = nn.BatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([0.1, -0.2]))
    norm.running_var.copy_(torch.tensor([0.5, 2.0]))
    return norm.eval()


def resnet(norm):
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1),
        Residual(norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, CLASSES),
    )


def frozen_backbone():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same"), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, CLASSES)
    )
    network[0].requires_grad_(False)
    return network


def one_axis():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, groups=2, dilation=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(4, 2, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )


def mixer():
    return nn.Sequential(nn.Conv2d(1, 3, 3, stride=3), nn.Flatten(2), Mixer(3, 4), nn.Flatten(), nn.Linear(12, CLASSES))


def decoder():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(2, 1, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


@dataclass(frozen=True)
class Network:
    """A network, the shape of its inputs, and the adversary it is trained against."""

    build: object
    shape: tuple[int, ...]
    adversary: BoundedAdversary = BoundedAdversary(n=1, epsilon=0.02)


NETWORKS = {
    "lenet": Network(lenet, (1, 6, 6)),
    "lenet, flips": Network(lenet, (1, 6, 6), BoundedAdversary(n=1, nu=1, q=0)),
    "lenet, Euclidean ball": Network(lenet, (1, 6, 6), BoundedAdversary(n=1, epsilon=0.2, p=2)),
    "residual, batch norm in evaluation": Network(lambda: resnet(running_statistics()), (1, 6, 6)),
    "residual, group norm": Network(lambda: resnet(nn.GroupNorm(1, 2)), (1, 4, 4), BoundedAdversary(n=1, epsilon=1e-3)),
    "frozen backbone": Network(frozen_backbone, (1, 6, 6), BoundedAdversary(n=2, epsilon=0.1, nu=1, q=0)),
    "one axis": Network(one_axis, (2, 12)),
    "mixer": Network(mixer, (1, 6, 6), BoundedAdversary(n=1, epsilon=1e-4)),
    "transposed": Network(decoder, (1, 5, 5), BoundedAdversary(n=1, epsilon=0.05, nu=1, q=0)),
}


def network(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        return NETWORKS[name].build().double()


def data(name: str, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    shape = NETWORKS[name].shape
    return [
        (
            torch.randn(BATCH, *shape, dtype=torch.float64, generator=generator),
            torch.randint(0, CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def engine_for(module: nn.Module, adversary: BoundedAdversary, example: object, optimizer: torch.optim.Optimizer):
    engine = AbstractGradientEngine(
        module, lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1]), adversary
    )
    problems = engine.problems(example, optimizer)
    if any("transpose" in problem for problem in problems):
        pytest.skip("no rule for transpose")
    assert not problems
    return engine


def optimizer_for(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=RATE)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_width_without_poison(name):
    module = network(name)
    batches = data(name, torch.Generator().manual_seed(1))
    optimizer = optimizer_for(module)
    engine = engine_for(module, BoundedAdversary(n=0), batches[0], optimizer)
    for batch in batches:
        engine.step([batch], optimizer)
    for parameter, box in engine.box.items():
        assert float(box.width.max()) <= ZERO, parameter
        assert box.contains(module.get_parameter(parameter).detach())


def attacks_on(module: nn.Module, adversary: BoundedAdversary, generator: torch.Generator) -> Attacks:
    return Attacks(module, "ce", adversary, RATE, 0.0, generator, count=RUNS, alone=3)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_contain_every_poisoned_run(name):
    reached = 0.0
    for seed in range(2):
        module, generator = network(name, seed), torch.Generator().manual_seed(seed)
        batches = data(name, generator)
        optimizer = optimizer_for(module)
        engine = engine_for(module, NETWORKS[name].adversary, batches[0], optimizer)
        attacks = attacks_on(module, NETWORKS[name].adversary, generator)
        for x, y in batches:
            attacks.step(x, y)
            engine.step([(x, y)], optimizer)
            assert_contained(engine, attacks.runs)
            reached = max(reached, largest_reach(engine, module, attacks.runs))
    # The attacks are not idle: they use a part of the room that the bounds leave.
    assert reached > 0.01


def largest_reach(engine, module, runs):
    """The share of the box's half-width that some run used."""
    shares = []
    for name, values in runs.items():
        moved = (values - module.get_parameter(name).detach()).abs().amax(0)
        shares.append(float((moved / engine.box[name].radius.clamp(min=1e-12)).max()))
    return max(shares)


def test_an_attack_beyond_the_adversary_leaves_the_bounds():
    """The check has teeth: an attacker with more samples than certified is caught outside."""
    module, generator = network("frozen backbone"), torch.Generator().manual_seed(0)
    batches = data("frozen backbone", generator)
    optimizer = optimizer_for(module)
    engine = engine_for(module, BoundedAdversary(n=1, nu=1, q=0), batches[0], optimizer)
    attacks = attacks_on(module, BoundedAdversary(n=5, nu=1, q=0), generator)
    attacks.step(*batches[0])
    engine.step([batches[0]], optimizer)
    with pytest.raises(AssertionError, match="left its bounds"):
        assert_contained(engine, attacks.runs)


class Classifier(L.LightningModule):
    """An ordinary module around a network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=RATE)


def trainer(callback: CertifiedTraining) -> L.Trainer:
    return L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def loader(name: str) -> DataLoader:
    batches = data(name, torch.Generator().manual_seed(2))
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return DataLoader(TensorDataset(x.float(), y), batch_size=BATCH)


pytestmark = [pytest.mark.filterwarnings(message) for message in NOISE]


@pytest.mark.parametrize(
    "name", ["lenet", "residual, batch norm in evaluation", "frozen backbone", "one axis", "mixer"]
)
def test_trains_under_the_callback_unmodified(name, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    module = Classifier(network(name).float())
    certified = CertifiedTraining(NETWORKS[name].adversary)
    trainer(certified).fit(module, loader(name))
    assert certified.bounds.contains(module)
    assert certified.bounds.mean_width() > 0
