"""Cost of a step with the ball alone beside a plain one: CPU time, interleaved, median of repeats.

Normal samples in float64, 200 of them poisoned: 11 → 64 → 1 with squared error, 32 → 10 with softmax.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import process_time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.propagation.samples import MicroBatch
from recipes.benchmark.report import Row
from recipes.benchmark.workloads import Workload, classes, normal, uniform
from recipes.models.perceptron import perceptron

WARM_UP = 20

Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]


@dataclass(frozen=True)
class Case:
    """A training to time.

    Args:
        sizes: of the perceptron's layers.
        loss: of a module and a batch.
        adversary: the threat model.
        rate: learning rate.
    """

    sizes: tuple[int, ...]
    loss: Loss
    adversary: BoundedAdversary
    rate: float

    def batch(self, samples: int) -> tuple[Tensor, Tensor]:
        """Return normal features, and numbers or classes as labels."""
        features = torch.randn(samples, self.sizes[0], dtype=torch.float64)
        if self.loss is cross_entropy:
            return features, torch.randint(0, self.sizes[-1], (samples,))
        return features, torch.rand(samples, self.sizes[-1], dtype=torch.float64)


def rows(samples: int, repeats: int, rate: float | None) -> list[Row]:
    """Measure every case, and return one row for each.

    Args:
        samples: of a batch.
        repeats: timed steps.
        rate: learning rate of all; None for each case's own.
    """
    found: list[Row] = []
    for name, case in CASES.items():
        plain, certified, radius = costs(case if rate is None else replace(case, rate=rate), samples, repeats)
        more = {"plain ms": 1e3 * plain, "ball ms more": 1e3 * certified, "ratio": certified / plain, "radius": radius}
        found.append({"head and poison": name, **more})
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in more.items()), flush=True)
    return found


def costs(case: Case, samples: int, repeats: int) -> tuple[float, float, float]:
    """Return seconds of forward and backward pass, and of everything that certification adds; the radius at the end."""
    torch.manual_seed(0)
    batch = case.batch(samples)
    network = perceptron(list(case.sizes), torch.float64)
    optimizer = torch.optim.SGD(network.parameters(), lr=case.rate)
    engine = AbstractGradientEngine(network, case.loss, case.adversary, domains=("ball",))
    for _ in range(WARM_UP):
        engine.step([batch], optimizer)
    plain, certified = [], []
    for _ in range(repeats):
        start = process_time()
        optimizer.zero_grad()
        case.loss(network, batch).backward()
        trained = process_time()
        descent = engine.bound_gradient([MicroBatch(batch)])
        engine.verify(descent, [MicroBatch(batch)])
        looked = process_time()
        optimizer.step()
        stepped = process_time()
        engine.update(descent, optimizer)
        plain.append(trained - start + stepped - looked)
        certified.append(looked - trained + process_time() - stepped)
    return median(plain), median(certified), engine.domains.in_use["ball"].radius


def squared_error(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean squared error."""
    return F.mse_loss(module(batch[0]), batch[1])


def cross_entropy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross entropy of the softmax."""
    return F.cross_entropy(module(batch[0]), batch[1])


def workloads() -> list[Workload]:
    """Return the cases as workloads of 10 000 samples, for other machines and clocks."""
    return [
        Workload(
            f"{' → '.join(map(str, case.sizes))}, {name}",
            partial(perceptron, list(case.sizes), torch.float64),
            normal(case.sizes[0]),
            classes(case.sizes[-1]) if case.loss is cross_entropy else uniform(case.sizes[-1]),
            F.cross_entropy if case.loss is cross_entropy else F.mse_loss,
            10_000,
            case.adversary,
            case.rate,
        )
        for name, case in CASES.items()
    ]


FEATURES = BoundedAdversary(n=200, epsilon=0.01)

CASES = {
    "labels": Case((11, 64, 1), squared_error, BoundedAdversary(n=200, nu=0.02), rate=0.005),
    "features": Case((11, 64, 1), squared_error, FEATURES, rate=0.005),
    "softmax labels": Case((32, 10), cross_entropy, BoundedAdversary(n=200, nu=1, q=0), rate=0.05),
    "softmax features": Case((32, 10), cross_entropy, FEATURES, rate=0.05),
}
