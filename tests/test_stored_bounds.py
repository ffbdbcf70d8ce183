"""Bounds of small trainings equal those of an earlier program, which are stored: speed must not change a bound.

`stored_bounds.json` is written by ``python tests/test_stored_bounds.py``, only where bounds change on purpose.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, UnboundedAdversary
from agt_lightning.adversaries import Adversary

STORED = Path(__file__).with_name("stored_bounds.json")

ROUNDING = 1e-11
"""Differences between machines, relative to the largest parameter: the bounds' own roundings in another order."""

SUMMATION_ORDER = 1e-9
"""Relative to the widest interval of a tensor, beside the rounding of its values; float64 sums of a few hundred terms
stay far below."""

F = nn.functional


def waves(*shape: int, speed: float = 1.0, shift: float = 0.0) -> Tensor:
    """Numbers in [-1, 1] that no generator and no version of torch changes."""
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(speed * 1.7 * count + shift + 0.3).reshape(shape)


class Attention(nn.Module):
    """A weight that is used twice, at several positions."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 3)
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x))))).mean(dim=1)


def dense(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers = [nn.Linear(i, o) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    return nn.Sequential(*[part for layer in layers for part in (layer, activation())][:-1])


def convolutional(*, frozen: bool) -> nn.Sequential:
    module = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4), nn.ReLU(), nn.Linear(4, 1))
    for parameter in module[0].parameters():
        parameter.requires_grad_(not frozen)
    return module


def mse(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(module(batch[0]), batch[1])


def bce(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.binary_cross_entropy_with_logits(module(batch[0]), batch[1])


def ce(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


def sgd(parameters: Iterator[nn.Parameter], **settings: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, **{"lr": 0.1, **settings})


@dataclass(frozen=True)
class Training:
    module: Callable[[], nn.Module]
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]
    adversary: Adversary
    features: tuple[int, ...]
    targets: int = 1
    poisonable: Callable[[object], Tensor] | None = None
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer] = sgd
    micro_batches: int = 1
    steps: int = 3
    samples: int = 24
    scale: float = field(default=0.4, kw_only=True)

    def box(self, device: str = "cpu") -> dict[str, list[list[float]]]:
        """Both bounds of every trained parameter after the last step."""
        module = self.module().double()
        with torch.no_grad():
            for number, parameter in enumerate(module.parameters()):
                parameter.copy_(self.scale * waves(*parameter.shape, shift=number))
        module.to(device)
        engine = AbstractGradientEngine(module, self.loss, self.adversary, poisonable=self.poisonable)
        optimizer = self.optimizer(p for p in module.parameters() if p.requires_grad)
        for step in range(self.steps):
            batches = [self._batch(step, part) for part in range(self.micro_batches)]
            engine.step([(x.to(device), y.to(device)) for x, y in batches], optimizer)
        return {
            name: [interval.lower.flatten().tolist(), interval.upper.flatten().tolist()]
            for name, interval in engine.box.items()
            if module.get_parameter(name).requires_grad
        }

    def _batch(self, step: int, part: int) -> tuple[Tensor, Tensor]:
        shift = 10.0 * step + part
        features = waves(self.samples, *self.features, speed=1.3, shift=shift)
        targets = waves(self.samples, self.targets, speed=2.1, shift=shift)
        labels = {bce: (targets > 0).double(), ce: targets.argmax(dim=1)}
        return features, labels.get(self.loss, targets)


def every_third(batch: tuple[Tensor, Tensor]) -> Tensor:
    return torch.arange(len(batch[0]), device=batch[0].device) % 3 == 0


def nesterov(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return sgd(parameters, momentum=0.9, nesterov=True, weight_decay=0.01)


def adam(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


FLIPS = BoundedAdversary(n=2, nu=1, q=0)
FEATURES = BoundedAdversary(n=3, epsilon=0.05)
LABELS = BoundedAdversary(n=3, nu=0.2)
BOTH = BoundedAdversary(n=2, epsilon=0.02, nu=0.1)
WIDE = BoundedAdversary(n=8, epsilon=0.2, nu=1, q=0)

TRAININGS = {
    "mse-features": Training(lambda: dense(3, 5, 1), mse, FEATURES, (3,)),
    "mse-features-l2": Training(lambda: dense(3, 5, 1), mse, BoundedAdversary(n=3, epsilon=0.2, p=2), (3,)),
    "mse-labels": Training(lambda: dense(3, 4, 4, 1), mse, LABELS, (3,)),
    "mse-both-tanh": Training(lambda: dense(3, 4, 4, 1, activation=nn.Tanh), mse, BOTH, (3,)),
    "mse-several-outputs": Training(lambda: dense(4, 3), mse, LABELS, (4,), targets=3),
    "bce-flips": Training(lambda: dense(3, 5, 1), bce, FLIPS, (3,)),
    "ce-flips-linear": Training(lambda: dense(4, 3), ce, FLIPS, (4,), targets=3),
    "ce-flips-some-classes": Training(
        lambda: dense(4, 3, 3),
        ce,
        BoundedAdversary(n=4, nu=1, q=0, target_classes=(0, 2), source_classes=(1, 2)),
        (4,),
        targets=3,
    ),
    "ce-wide": Training(lambda: dense(4, 5, 4, 3), ce, WIDE, (4,), targets=3, scale=1.0),
    "ce-wide-sigmoid": Training(lambda: dense(4, 4, 3, activation=nn.Sigmoid), ce, WIDE, (4,), targets=3, scale=1.0),
    "convolution": Training(lambda: convolutional(frozen=False), bce, FEATURES, (1, 4, 4)),
    "frozen-features": Training(lambda: convolutional(frozen=True), mse, FEATURES, (1, 4, 4), poisonable=every_third),
    "frozen-labels": Training(lambda: convolutional(frozen=True), bce, FLIPS, (1, 4, 4), poisonable=every_third),
    "positions": Training(Attention, mse, FEATURES, (4, 3)),
    "micro-batches": Training(
        lambda: dense(3, 4, 1), mse, BOTH, (3,), optimizer=nesterov, micro_batches=2, poisonable=every_third
    ),
    "adam": Training(lambda: dense(3, 4, 1), bce, FLIPS, (3,), optimizer=adam),
    "value-clipping": Training(lambda: dense(3, 4, 1), mse, UnboundedAdversary(n=2, kappa=0.1), (3,)),
    "norm-clipping": Training(lambda: dense(3, 4, 1), mse, UnboundedAdversary(n=2, kappa=0.3, clip="norm"), (3,)),
    "nobody": Training(lambda: dense(3, 4, 1), mse, BoundedAdversary(n=0), (3,)),
    "everybody": Training(lambda: dense(3, 4, 1), mse, BoundedAdversary(n=100, epsilon=0.02), (3,)),
    "many-samples": Training(
        lambda: dense(2, 2, 1), mse, BoundedAdversary(n=40, epsilon=0.05, nu=0.1), (2,), samples=4000, steps=2
    ),
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", TRAININGS)
def test_bounds_are_those_of_the_stored_program(name, device):
    stored, found = json.loads(STORED.read_text())[name], TRAININGS[name].box(device)
    assert stored.keys() == found.keys()
    for parameter, bounds in found.items():
        expected, actual = (torch.tensor(values, dtype=torch.float64) for values in (stored[parameter], bounds))
        width, size = float((expected[1] - expected[0]).max()), float(expected.abs().max())
        tolerance = SUMMATION_ORDER * width + ROUNDING * size
        assert float((actual - expected).abs().max()) <= tolerance, parameter


if __name__ == "__main__":
    STORED.write_text(json.dumps({name: training.box() for name, training in TRAININGS.items()}) + "\n")
