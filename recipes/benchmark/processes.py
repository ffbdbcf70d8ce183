"""What certification costs in several processes: CPU time of a step and bytes sent, against DDP without certification.

Random data of the shape of MNIST, a network of 784-128-10, one batch divided among the processes, SGD, gloo. Times are
of one process and of its CPU, the median over steps and the largest over processes.

    python -m recipes.benchmark_processes
    python -m recipes.benchmark_processes --batch 16 --steps 2      seconds, to see that it runs
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.distributed import TorchProcessGroup
from recipes.benchmark.__main__ import Row, write

ADVERSARIES = {
    "labels": BoundedAdversary(n=5, nu=1, q=0),
    "features": BoundedAdversary(n=5, epsilon=0.01),
}
Step = Callable[[], None]


@dataclass(frozen=True)
class Costs:
    """Of one step in one process.

    Args:
        seconds: CPU time.
        sent: bytes given to collectives.
    """

    seconds: float
    sent: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.benchmark_processes``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=512, help="samples of all processes together")
    parser.add_argument("--steps", type=int, default=7, help="steps that are measured, after two that are not")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/benchmark"))
    chosen = parser.parse_args(arguments)
    rows: list[Row] = []
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(measure, (size, chosen.batch, chosen.steps, folder), nprocs=size)
            found = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(size)]
        plain = max(costs["plain"][0] for costs in found)
        for name in ADVERSARIES:
            seconds = max(costs[name][0] for costs in found)
            rows.append(
                {
                    "processes": size,
                    "poisoned": name,
                    "plain ms": 1e3 * plain,
                    "certified ms": 1e3 * seconds,
                    "ratio": seconds / plain,
                    "plain MB sent": found[0]["plain"][1] / 1e6,
                    "certified MB sent": found[0][name][1] / 1e6,
                }
            )
    caption = f"CPU time and bytes sent per step and process; batch of {chosen.batch}, median of {chosen.steps} steps."
    print(*write(rows, chosen.output_dir / "benchmark_processes", caption), sep="\n")


def measure(rank: int, size: int, batch: int, steps: int, folder: str) -> None:
    """Measure all kinds of steps in one process, and write what was found to the folder.

    Args:
        rank: number of this process.
        size: number of processes.
        batch: samples of all processes together.
        steps: number of steps that are measured.
        folder: for the store of the process group, and the result.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    generator = torch.Generator().manual_seed(rank)
    own = batch // size
    data = torch.rand(own, 784, generator=generator), torch.randint(0, 10, (own,), generator=generator)
    found = {"plain": costs_of(*plain_step(data), steps)}
    for name, adversary in ADVERSARIES.items():
        found[name] = costs_of(*certified_step(data, adversary), steps)
    torch.save({name: (costs.seconds, costs.sent) for name, costs in found.items()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def costs_of(step: Step, sent: Callable[[], int], steps: int) -> Costs:
    """The median time of a step and its mean number of bytes; two steps go before."""
    for _ in range(2):
        step()
    before, times = sent(), []
    for _ in range(steps):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return Costs(median(times), (sent() - before) / steps)


def plain_step(data: tuple[Tensor, Tensor]) -> tuple[Step, Callable[[], int]]:
    """A step under DDP, which sends every gradient once."""
    module = nn.parallel.DistributedDataParallel(network())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    taken = [0]

    def step() -> None:
        optimizer.zero_grad()
        loss(module, data).backward()
        optimizer.step()
        taken[0] += sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())

    return step, lambda: taken[0]


def certified_step(data: tuple[Tensor, Tensor], adversary: BoundedAdversary) -> tuple[Step, Callable[[], int]]:
    """The same step, and that of the box."""
    module, processes = network(), TorchProcessGroup(torch.device("cpu"))
    engine = AbstractGradientEngine(module, loss, adversary, processes=processes)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    return lambda: engine.step([data], optimizer), lambda: processes.sent


def network() -> nn.Sequential:
    """The same initial weights in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy."""
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


if __name__ == "__main__":
    main()
