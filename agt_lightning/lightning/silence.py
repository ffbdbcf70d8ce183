"""Cut a replica of a LightningModule off from everything that its code could leave a trace in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import lightning as L
import torch
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

if TYPE_CHECKING:
    _Base = L.LightningModule
else:
    _Base = object


def silence(module: L.LightningModule, trainer: L.Trainer, note_time: Callable[[], None]) -> None:
    """Replace loggers, metrics and the Trainer of a replica by stand-ins that keep nothing.

    Args:
        module: a replica, never the module in training.
        trainer: what it answers as ``self.trainer``, without its loggers.
        note_time: called when the code asks for the epoch or the global step.
    """
    if not isinstance(module, _Silent):
        module.__class__ = type(type(module).__name__, (_Silent, type(module)), {"_note_time": staticmethod(note_time)})
    module._trainer = _SilentTrainer(trainer)  # type: ignore[assignment]
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, MetricCollection):
                part._modules[name] = _SilentCollection(child)
            elif isinstance(child, Metric):
                part._modules[name] = _SilentMetric()


class _Silent(_Base):
    """Overrides of a LightningModule that reach outside it."""

    _note_time: Callable[[], None]

    def log(self, *args: object, **kwargs: object) -> None:
        """Log nothing."""

    def log_dict(self, *args: object, **kwargs: object) -> None:
        """Log nothing."""

    def print(self, *args: object, **kwargs: object) -> None:
        """Print nothing."""

    @property
    def current_epoch(self) -> int:
        """The epoch; asking for it is noted, since the recorded loss is then good for this epoch only."""
        self._note_time()
        return super().current_epoch

    @property
    def global_step(self) -> int:
        """The step, likewise."""
        self._note_time()
        return super().global_step

    @property
    def logger(self) -> Logger:
        """A logger that keeps nothing."""
        return DummyLogger()

    @property
    def loggers(self) -> list[Logger]:
        """Loggers that keep nothing."""
        return [DummyLogger()]


class _SilentTrainer:
    """The Trainer, without its loggers."""

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
        self.logger = DummyLogger()
        self.loggers = [self.logger]
        self.callback_metrics: dict[str, Tensor] = {}
        self.logged_metrics: dict[str, Tensor] = {}
        self.progress_bar_metrics: dict[str, float] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._trainer, name)


class _SilentMetric(nn.Module):
    """Stands where a torchmetrics object was: takes any call, keeps nothing, answers zero.

    The zero is made anew for each call: a tensor kept as attribute would become part of the recording.
    """

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        return torch.zeros(())

    def update(self, *args: object, **kwargs: object) -> None:
        """Forget the arguments."""

    def compute(self) -> Tensor:
        """Zero."""
        return torch.zeros(())

    def reset(self) -> None:
        """Nothing to forget."""


class _SilentCollection(nn.Module):
    """Stands where a `MetricCollection` was, with its keys."""

    def __init__(self, collection: MetricCollection) -> None:
        super().__init__()
        self.names = [str(name) for name in collection]
        self.members = {str(name): _SilentMetric() for name in collection.keys(keep_base=True)}  # noqa: SIM118

    def __getitem__(self, name: str) -> _SilentMetric:
        return self.members[name]

    def forward(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        return self.compute()

    def compute(self) -> dict[str, Tensor]:
        """Zeros."""
        return {name: torch.zeros(()) for name in self.names}

    def update(self, *args: object, **kwargs: object) -> None:
        """Forget the arguments."""

    def reset(self) -> None:
        """Nothing to forget."""
