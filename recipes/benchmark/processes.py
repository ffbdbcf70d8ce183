"""Cost of certification in several processes: CPU time of a step and bytes sent, against DDP without certification.

Random data of the shape of MNIST, a network of 784-128-10, one batch divided among the processes, SGD, gloo. Times are
of one process and of its CPU, the median over steps and the largest over processes.
"""

import pickle
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
from recipes.benchmark.report import Row

ADVERSARIES = {
    "labels": BoundedAdversary(n=5, nu=1, q=0),
    "features": BoundedAdversary(n=5, epsilon=0.01),
}
Step = Callable[[], None]


@dataclass(frozen=True)
class Costs:
    """Costs of one step in one process.

    Args:
        seconds: CPU time.
        sent: bytes given to collectives.
    """

    seconds: float
    sent: float


def rows(sizes: Sequence[int], batch: int, steps: int) -> list[Row]:
    """Measure both adversaries for every number of processes, and return one row for each.

    Args:
        sizes: numbers of processes.
        batch: samples of all processes together.
        steps: number of measured steps, after two others.
    """
    found: list[Row] = []
    for size in sizes:
        costs = spawned(size, batch, steps)
        plain = max(own["plain"].seconds for own in costs)
        for name in ADVERSARIES:
            seconds = max(own[name].seconds for own in costs)
            found.append(
                {
                    "processes": size,
                    "poisoned": name,
                    "plain ms": 1e3 * plain,
                    "certified ms": 1e3 * seconds,
                    "ratio": seconds / plain,
                    "plain MB sent": costs[0]["plain"].sent / 1e6,
                    "certified MB sent": costs[0][name].sent / 1e6,
                }
            )
    return found


def spawned(size: int, batch: int, steps: int) -> list[dict[str, Costs]]:
    """Return what `measure` returns in each of ``size`` new processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_in_group, (size, batch, steps, folder), nprocs=size)
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(size)]


def _in_group(rank: int, size: int, batch: int, steps: int, folder: str) -> None:
    """Form a process group, measure, and write the costs to the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(measure(batch, steps)))
    dist.destroy_process_group()


def measure(batch: int, steps: int) -> dict[str, Costs]:
    """Return the costs of all kinds of steps in this process of a process group.

    Args:
        batch: samples of all processes together.
        steps: number of measured steps.
    """
    generator = torch.Generator().manual_seed(dist.get_rank())
    share = batch // dist.get_world_size()
    data = torch.rand(share, 784, generator=generator), torch.randint(0, 10, (share,), generator=generator)
    costs = {"plain": costs_of(*plain_step(data), steps)}
    for name, adversary in ADVERSARIES.items():
        costs[name] = costs_of(*certified_step(data, adversary), steps)
    return costs


def costs_of(step: Step, sent: Callable[[], int], steps: int) -> Costs:
    """Return the median time of a step and its mean number of bytes, after two steps that are not measured."""
    for _ in range(2):
        step()
    before, times = sent(), []
    for _ in range(steps):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return Costs(median(times), (sent() - before) / steps)


def plain_step(data: tuple[Tensor, Tensor]) -> tuple[Step, Callable[[], int]]:
    """Return a step under DDP, which sends every gradient once."""
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
    """Return the same step together with that of the box."""
    module, processes = network(), TorchProcessGroup(torch.device("cpu"))
    engine = AbstractGradientEngine(module, loss, adversary, processes=processes)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    return lambda: engine.step([data], optimizer), lambda: processes.sent


def network() -> nn.Sequential:
    """Return the network, with the same initial weights in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross entropy."""
    return nn.functional.cross_entropy(module(batch[0]), batch[1])
