"""The user's `training_step` as a function of module and batch, with logging and metrics silenced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import lightning as L
import torch
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from agt_lightning.capture.source import as_forward
from agt_lightning.errors import CaptureError


class TrainingLoss:
    """Calls `training_step`, or `certified_objective` if the module has one, on a replica of the module.

    Args:
        trainer: what the replica answers as ``self.trainer``.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self.trainer = trainer

    def __call__(self, module: nn.Module, batch: object) -> Tensor:
        """The scalar loss of a batch.

        Raises:
            CaptureError: if `training_step` returns no loss.
        """
        assert isinstance(module, L.LightningModule)
        silence(module, self.trainer)
        result = self._result(module, batch)
        loss = result.get("loss") if isinstance(result, Mapping) else result
        if not isinstance(loss, Tensor):
            raise CaptureError(
                "Expected `training_step` to return the loss or a dict with the key 'loss', but got "
                f"{type(loss).__name__}. Return it; with manual optimization, use automatic optimization instead."
            )
        return loss

    def _result(self, module: L.LightningModule, batch: object) -> object:
        objective = getattr(module, "certified_objective", None)
        if objective is not None:
            chosen = as_forward(objective)(batch)
            if chosen is not None:
                return chosen
        accepted = inspect.signature(module.training_step).parameters
        training_step = as_forward(module.training_step)
        extra = {"batch_idx": 0, "dataloader_idx": 0}
        named = {name: value for name, value in extra.items() if name in accepted}
        if len(accepted) > 1 and not named:
            return training_step(batch, 0)
        return training_step(batch, **named)


class _SilentMetric(nn.Module):
    """Stands where a torchmetrics object was: takes any call, keeps nothing.

    Args:
        empty: makes what calls return; a tensor kept as attribute would become part of the recording.
    """

    def __init__(self, empty: Callable[[], object]) -> None:
        super().__init__()
        self.empty = empty

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.empty()

    def update(self, *args: object, **kwargs: object) -> None:
        """Forget the arguments."""

    def compute(self) -> object:
        """An empty result."""
        return self.empty()

    def reset(self) -> None:
        """Nothing to forget."""


class _Silent:
    """Overrides of a LightningModule that reach outside it."""

    def log(self, *args: object, **kwargs: object) -> None:
        """Log nothing."""

    def log_dict(self, *args: object, **kwargs: object) -> None:
        """Log nothing."""

    def print(self, *args: object, **kwargs: object) -> None:
        """Print nothing."""

    @property
    def logger(self) -> Logger:
        """A logger that keeps nothing."""
        return DummyLogger()

    @property
    def loggers(self) -> list[Logger]:
        """Loggers that keep nothing."""
        return [DummyLogger()]


def _zero() -> Tensor:
    return torch.zeros(())


def silence(module: L.LightningModule, trainer: L.Trainer) -> None:
    """Cut a replica off from loggers, progress bars and metric states.

    Args:
        module: a replica, never the module in training.
        trainer: what it answers as ``self.trainer``.
    """
    if not isinstance(module, _Silent):
        module.__class__ = type(type(module).__name__, (_Silent, type(module)), {})
    module._trainer = trainer
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, MetricCollection):
                part._modules[name] = _SilentMetric(dict)
            elif isinstance(child, Metric):
                part._modules[name] = _SilentMetric(_zero)
