r"""What a step with the ball alone costs beside a plain one: CPU time of one thread, interleaved, median of repeats.

11 → 64 → 1 in float64, batches of 10 000 normal samples, 200 of them poisoned.

    python -m recipes.ball_cost
"""

import argparse
from collections.abc import Sequence
from statistics import median
from time import process_time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.passes import MicroBatch
from recipes.models.perceptron import perceptron

ADVERSARIES = {"labels": BoundedAdversary(n=200, nu=0.02), "features": BoundedAdversary(n=200, epsilon=0.01)}
WARM_UP = 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.ball_cost``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000, help="samples of a batch")
    parser.add_argument("--repeats", type=int, default=15, help="timed steps")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name, adversary in ADVERSARIES.items():
        plain, certified = costs(adversary, chosen.samples, chosen.repeats)
        print(f"{name}: plain step {plain * 1e3:.1f} ms, ball {certified * 1e3:.1f} ms more, {certified / plain:.1f} x")


def costs(adversary: BoundedAdversary, samples: int, repeats: int) -> tuple[float, float]:
    """Seconds of forward and backward pass, and of everything that certification adds."""
    torch.manual_seed(0)
    batch = (torch.randn(samples, 11, dtype=torch.float64), torch.rand(samples, 1, dtype=torch.float64))
    network = perceptron([11, 64, 1], torch.float64)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.005)
    engine = AbstractGradientEngine(network, squared_error, adversary, domains=("ball",))
    for _ in range(WARM_UP):
        engine.step([batch], optimizer)
    plain, certified = [], []
    for _ in range(repeats):
        start = process_time()
        optimizer.zero_grad()
        squared_error(network, batch).backward()
        trained = process_time()
        descent = engine.descend([MicroBatch(batch)])
        engine.verify(descent, [MicroBatch(batch)])
        looked = process_time()
        optimizer.step()
        stepped = process_time()
        engine.update(descent, optimizer)
        plain.append(trained - start + stepped - looked)
        certified.append(looked - trained + process_time() - stepped)
    return median(plain), median(certified)


def squared_error(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(module(batch[0]), batch[1])


if __name__ == "__main__":
    main()
