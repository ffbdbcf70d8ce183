"""Trainings with several processes: their group, and strategies that would void the guarantee."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from agt_lightning.distributed import SINGLE_PROCESS, ProcessGroup, TorchProcessGroup
from agt_lightning.lightning.packages import of_both


def processes_of(trainer: L.Trainer) -> ProcessGroup:
    """Return the group of all processes of a Trainer whose strategy is set up."""
    return SINGLE_PROCESS if trainer.world_size == 1 else TorchProcessGroup(trainer.strategy.root_device)


def strategy_problems(trainer: L.Trainer) -> list[str]:
    """Return why the mean over processes that this strategy applies cannot be bounded; the same in every process.

    Args:
        trainer: with its strategy set up, so that the module is wrapped.
    """
    strategy = trainer.strategy
    if trainer.world_size == 1:
        return []
    if not isinstance(strategy, of_both(DDPStrategy)):
        return [
            f"`{type(strategy).__name__}` with {trainer.world_size} processes has no bounds: parameters must be whole "
            "in every process. Use `strategy='agt_ddp'` or 'ddp'."
        ]
    problems = []
    if strategy._ddp_comm_hook is not None or getattr(strategy.model, "_comm_hooks", []):
        problems.append(
            "A communication hook (`ddp_comm_hook`) changes what the processes exchange, by compression or delay. "
            "Leave it out."
        )
    if strategy._model_averaging_period is not None:
        problems.append("`model_averaging_period` averages parameters, which has no bounds. Leave it out.")
    if strategy._ddp_kwargs.get("mixed_precision") is not None:
        problems.append("`mixed_precision` of DDP rounds more than the bounds allow for. Leave it out.")
    if any(isinstance(part, nn.SyncBatchNorm) for part in trainer.lightning_module.modules()):
        problems.append(
            "`SyncBatchNorm` lets the samples of all processes change each other's outputs. Set `sync_batchnorm=False` "
            "and use GroupNorm or LayerNorm."
        )
    return problems
