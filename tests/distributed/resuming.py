"""Trainings that are interrupted, in one process or in those of the pool."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from agt_lightning import BoundedAdversary, CertifiedTraining
from tests.distributed.lightning_cases import Regressor, bounds_of, dataset, trainer

ADVERSARY = BoundedAdversary(n=1, epsilon=0.001, nu=0.001)
"""Weak, so that bounds stay finite over all steps with momentum."""


class Batches:
    """Batches of one epoch that remember where they are, so that Lightning can resume in the middle of it.

    Lightning stops after `len` batches and never draws past the last one, so the place after it is the first again.
    """

    def __init__(self, size: int = 4, count: int = 6) -> None:
        self.size, self.count, self.position = size, count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        start = self.position
        for index in range(start, self.count):
            self.position = (index + 1) % self.count
            yield self._batch(index)

    def _batch(self, index: int) -> list[torch.Tensor]:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        share = self.size // world
        start = index * self.size + rank * share
        return [tensor[start : start + share] for tensor in dataset(self.size * self.count).tensors]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Heavy(Regressor):
    """Writing it takes a while."""

    def __init__(self, momentum: float = 0.0, ballast: int = 0) -> None:
        super().__init__(momentum)
        self.register_buffer("ballast", torch.zeros(ballast, dtype=torch.uint8))


class StopAt(Callback):
    """Ends a run as Ctrl-C would, but saves before."""

    def __init__(self, step: int, path: str) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True
            trainer.limit_train_batches = 0


def run(
    *callbacks: Callback,
    ckpt_path: str | None = None,
    momentum: float = 0.0,
    ballast: int = 0,
    freeze: bool = False,
    certification: dict[str, Any] | None = None,
    adversary: Any = ADVERSARY,
    epochs: int = 2,
    batches: int = 6,
) -> dict[str, Any]:
    """Train, perhaps from a checkpoint."""
    warnings.simplefilter("ignore")
    torch.manual_seed(5)
    module = Heavy(momentum, ballast)
    if freeze:
        module.net[0].requires_grad_(False)
    certified = CertifiedTraining(adversary, **certification or {})
    made = trainer(certified, *callbacks, max_epochs=epochs, enable_checkpointing=any(callbacks) or None)
    made.fit(module, Batches(count=batches), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    radius = certified.engine.domains.metrics().get("radius")
    return {**bounds_of(certified), "radius": radius}


def interrupted(step: int, path: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train up to a step, save, and go on in a new Trainer from there."""
    run(StopAt(step, path), **options)
    return run(ckpt_path=path, **options)


ONE_EPOCH: dict[str, Any] = {"momentum": 0.9, "epochs": 1, "batches": 12}
"""A training without epochs to count. Resumed after the last batch of an epoch, saved and resumed again, Lightning 2.6
trains an epoch too many, with or without certification; see docs/processes.md."""


def saving_every_step(folder: str, ballast: int) -> None:
    """A training that can be killed; it goes on from the last checkpoint that is there."""
    torch.set_num_threads(1)
    last = Path(folder) / "last.ckpt"
    saver = ModelCheckpoint(folder, filename="step", every_n_train_steps=1, save_top_k=0, save_last=True)
    saver.CHECKPOINT_EQUALS_CHAR = "="
    result = run(saver, ckpt_path=str(last) if last.exists() else None, ballast=ballast, **ONE_EPOCH)
    torch.save(result, Path(folder) / "result.pt")
