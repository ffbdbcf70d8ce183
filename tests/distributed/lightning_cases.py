"""Lightning's DDP in the processes of the pool, which have made their process group already."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from agt_lightning import BoundedAdversary, CertifiedTraining
from agt_lightning.lightning import AbstractGradientStrategy

ADVERSARY = BoundedAdversary(n=2, epsilon=0.05, nu=0.1)
SIZE, BATCH = 24, 12
"""Samples of the data set, and of a batch over all processes."""


class Existing(ClusterEnvironment):
    """Processes that are there, in a group that is there."""

    creates_processes_externally = True
    main_address, main_port = "", 0

    @staticmethod
    def detect() -> bool:
        return True

    def world_size(self) -> int:
        return dist.get_world_size()

    def set_world_size(self, size: int) -> None:
        assert size == dist.get_world_size()

    def global_rank(self) -> int:
        return dist.get_rank()

    def set_global_rank(self, rank: int) -> None:
        assert rank == dist.get_rank()

    def local_rank(self) -> int:
        return dist.get_rank()

    def node_rank(self) -> int:
        return 0


class Regressor(L.LightningModule):
    def __init__(self, momentum: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)).double()
        self.momentum = momentum

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=self.momentum)


class Strided(torch.utils.data.Sampler):
    """Process r of s takes the samples r, r + s, ...: together a batch is what one process would draw."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self):
        return iter(range(dist.get_rank(), self.size, dist.get_world_size()))

    def __len__(self):
        return self.size // dist.get_world_size()


def dataset(size: int = SIZE) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(size, 3, dtype=torch.float64, generator=generator)
    return TensorDataset(x, torch.randn(size, 1, dtype=torch.float64, generator=generator))


def loader(size: int = SIZE, micro: int = 1, **sampler: Any) -> DataLoader:
    world = dist.get_world_size() if dist.is_initialized() else 1
    data = dataset(size)
    if sampler:
        return DataLoader(data, BATCH // world // micro, sampler=DistributedSampler(data, **sampler))
    return DataLoader(data, BATCH // world // micro, sampler=Strided(size) if dist.is_initialized() else None)


def trainer(*callbacks: Callback, strategy: Any = None, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 2, "use_distributed_sampler": False}
    if dist.is_initialized():
        quiet |= {"devices": dist.get_world_size(), "plugins": [Existing()]}
        quiet |= {"strategy": strategy or AbstractGradientStrategy(process_group_backend="gloo")}
    else:
        quiet |= {"devices": 1}
    return L.Trainer(callbacks=list(callbacks), **quiet | options)


def ddp(**options: Any) -> DDPStrategy:
    return DDPStrategy(process_group_backend="gloo", **options)


def bounds_of(certified: CertifiedTraining) -> dict[str, Any]:
    box = certified.engine.box
    return {
        "lower": {name: interval.lower for name, interval in box.items()},
        "upper": {name: interval.upper for name, interval in box.items()},
        "parameters": {name: p.detach() for name, p in certified.engine.module.named_parameters()},
        "radius": None,
        "steps": certified.engine.steps,
    }


def fit(
    settings: dict[str, Any] | None = None,
    *,
    ddp_options: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    certification: dict[str, Any] | None = None,
    adversary: Any = ADVERSARY,
    momentum: float = 0.0,
    validate: bool = False,
) -> dict[str, Any]:
    """Train and return bounds and metrics."""
    warnings.simplefilter("ignore")
    torch.manual_seed(5)
    module = Regressor(momentum)
    certified = CertifiedTraining(adversary, **certification or {})
    options = dict(settings or {})
    if ddp_options is not None:
        options["strategy"] = ddp(**ddp_options)
    made = trainer(certified, **options)
    made.fit(module, loader(**data or {}), loader() if validate else None)
    return {**bounds_of(certified), "metrics": {name: float(v) for name, v in made.callback_metrics.items()}}
