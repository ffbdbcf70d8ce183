"""Replicas of a LightningModule that leave no trace: stand-ins for loggers, metrics and the Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from agt_lightning.capture.data_reads import metric_value
from agt_lightning.capture.opaque import Unread
from agt_lightning.capture.recording import refuse
from agt_lightning.capture.source import current_line

if TYPE_CHECKING:
    _Base = L.LightningModule
else:
    _Base = object


def silence(module: L.LightningModule, trainer: L.Trainer, note_time: Callable[[], None]) -> None:
    """Replace loggers, metrics and the Trainer of a replica by stand-ins that keep nothing.

    Args:
        module: a replica, never the module in training.
        trainer: the Trainer that it then has as ``self.trainer``, without its loggers.
        note_time: called if the code reads the epoch or the global step.
    """
    if not isinstance(module, _Silent):
        module.__class__ = type(type(module).__name__, (_Silent, type(module)), {"_note_time": staticmethod(note_time)})
    _uncompile(module)
    module._trainer = _SilentTrainer(trainer)  # type: ignore[assignment]
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, MetricCollection):
                part._modules[name] = _SilentCollection(child)
            elif isinstance(child, Metric):
                part._modules[name] = _SilentMetric()


def _uncompile(module: L.LightningModule) -> None:
    """Remove the compiled methods that `torch.compile` puts on a module: they belong to the original of a replica."""
    if module._compiler_ctx is not None:
        for name in [name for name in vars(module) if f"original_{name}" in module._compiler_ctx]:
            delattr(module, name)


class _Silent(_Base):
    """A base that overrides the methods by which a LightningModule acts outside itself."""

    _note_time: Callable[[], None]

    def log(self, *args: object, **kwargs: object) -> None:
        """Log nothing."""

    def log_dict(self, *args: object, **kwargs: object) -> None:
        """Log nothing."""

    def print(self, *args: object, **kwargs: object) -> None:
        """Print nothing."""

    @property
    def current_epoch(self) -> int:
        """The epoch; reading it is noted, since the recorded loss then holds for this epoch only."""
        self._note_time()
        return super().current_epoch

    @property
    def global_step(self) -> int:
        """The global step; reading it is noted, since the recorded loss then holds for this step only."""
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


def _metrics(name: str) -> Unread:
    return Unread(f"reads `trainer.{name}`, which remembers earlier batches. Remove that.")


class _SilentTrainer:
    """A Trainer without its loggers and logged values."""

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
        self.logger = DummyLogger()
        self.loggers = [self.logger]
        self.callback_metrics = _metrics("callback_metrics")
        self.logged_metrics = _metrics("logged_metrics")
        self.progress_bar_metrics = _metrics("progress_bar_metrics")

    def __getattr__(self, name: str) -> object:
        return getattr(self._trainer, name)


class _SilentMetric(nn.Module):
    """A stand-in for a torchmetrics object that accepts every call and keeps nothing.

    Each call returns a new tensor by which capture recognizes a loss that depends on the metric.
    """

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            refuse(f"{current_line()} reads `{name}` of a metric, which remembers earlier batches. Remove that.")
        return super().__getattr__(name)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        return metric_value()

    def update(self, *args: object, **kwargs: object) -> None:
        """Do nothing."""

    def compute(self) -> Tensor:
        """Return the value of all stand-ins."""
        return metric_value()

    def reset(self) -> None:
        """Do nothing."""


class _SilentCollection(nn.Module):
    """A stand-in for a `MetricCollection`, with its keys."""

    def __init__(self, collection: MetricCollection) -> None:
        super().__init__()
        self.names = [str(name) for name in collection]
        self.members = {str(name): _SilentMetric() for name in collection.keys(keep_base=True)}  # noqa: SIM118

    def __getitem__(self, name: str) -> _SilentMetric:
        return self.members[name]

    def forward(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        return self.compute()

    def compute(self) -> dict[str, Tensor]:
        """Return the value of all stand-ins, by name."""
        return {name: metric_value() for name in self.names}

    def update(self, *args: object, **kwargs: object) -> None:
        """Do nothing."""

    def reset(self) -> None:
        """Do nothing."""
