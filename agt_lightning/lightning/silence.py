"""Replicas of a LightningModule that leave no trace: stand-ins for loggers, metrics and the Trainer."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import fields
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from agt_lightning.capture.clock import Clock, Reads
from agt_lightning.capture.data_reads import metric_value
from agt_lightning.capture.opaque import Unread
from agt_lightning.capture.recording import refuse, watch_also
from agt_lightning.capture.source import LIGHTNING, current_line
from agt_lightning.capture.state import attributes, setting_of_class
from agt_lightning.lightning.packages import LIGHTNING_MODULES, of_both

if TYPE_CHECKING:
    _Base = L.LightningModule
else:
    _Base = object


def silence(module: L.LightningModule, trainer: L.Trainer, clock: Clock, reads: Reads) -> None:
    """Replace loggers, metrics and the Trainer of a replica by stand-ins that keep nothing, and set its clock.

    Args:
        module: a replica, never the module in training.
        trainer: the Trainer that it then has as ``self.trainer``, without its loggers.
        clock: the time that the replica finds.
        reads: where it is noted what the code looks at.
    """
    _uncompile(module)
    kind = type(module).__bases__[1] if isinstance(module, _Silent) else type(module)
    module.__class__ = type(kind.__name__, (_Silent, kind), {"_agt_clock": clock, "_agt_reads": reads})
    module._trainer = _SilentTrainer(trainer, module, clock, reads)  # type: ignore[assignment]
    watch_also(getattr(trainer, "datamodule", None))
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
    """A base that overrides the methods by which a LightningModule acts outside itself, and notes what is read."""

    _agt_clock: Clock
    _agt_reads: Reads

    def __getattribute__(self, name: str) -> object:
        """Return an attribute; names of attributes that hold values are noted, also of those that the module lacks."""
        note = type(self)._agt_reads.attributes
        own = super().__getattribute__("__dict__")
        try:
            value = super().__getattribute__(name)
        except AttributeError:
            if not any(name in own[state] for state in ("_parameters", "_buffers", "_modules")):
                note.add(name)
            raise
        if name == "__dict__" and not _called_by_a_library():
            note.update(attributes(self).keys() - _LIGHTNINGS_OWN)
        elif name not in _LIGHTNINGS_OWN and (name in own or setting_of_class(type(self), name) is not None):
            note.add(name)
        return value

    def log(self, *args: object, **kwargs: object) -> None:
        """Log nothing."""

    def log_dict(self, *args: object, **kwargs: object) -> None:
        """Log nothing."""

    def print(self, *args: object, **kwargs: object) -> None:
        """Print nothing."""

    @property
    def current_epoch(self) -> int:
        """The epoch; using it is noted, since the recorded loss then holds for this epoch only."""
        return self._agt_reads.ticks(self._agt_clock, "epoch")

    @property
    def global_step(self) -> int:
        """The global step; using it is noted, since the recorded loss then holds for this step only."""
        return self._agt_reads.ticks(self._agt_clock, "step")

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """Return a stand-in for the optimizer, or a list of them, as Lightning does."""
        optimizers = self.trainer.optimizers
        return optimizers[0] if len(optimizers) == 1 else optimizers

    @property
    def logger(self) -> Logger:
        """A logger that keeps nothing."""
        return DummyLogger()

    @property
    def loggers(self) -> list[Logger]:
        """Loggers that keep nothing."""
        return [DummyLogger()]


_LIGHTNINGS_OWN = frozenset(vars(nn.Module())).union(*(vars(base()) for base in LIGHTNING_MODULES))
"""Attributes by which Lightning and torch manage a module; what matters of them is in the key of a recording."""


def _called_by_a_library() -> bool:
    """Return whether the code that called the caller is torch's or Lightning's."""
    module = str(sys._getframe(2).f_globals.get("__name__"))
    return module.partition(".")[0] in ("torch", "torchmetrics", __name__.partition(".")[0], *LIGHTNING)


_CONSTANT = frozenset(
    {
        "accelerator",
        "accumulate_grad_batches",
        "barebones",
        "datamodule",
        "default_root_dir",
        "device_ids",
        "estimated_stepping_batches",
        "fast_dev_run",
        "global_rank",
        "gradient_clip_algorithm",
        "gradient_clip_val",
        "is_global_zero",
        "local_rank",
        "log_every_n_steps",
        "max_epochs",
        "max_steps",
        "max_time",
        "min_epochs",
        "min_steps",
        "node_rank",
        "num_devices",
        "num_nodes",
        "num_training_batches",
        "num_val_batches",
        "overfit_batches",
        "precision",
        "predicting",
        "sanity_checking",
        "state",
        "testing",
        "train_dataloader",
        "training",
        "val_dataloaders",
        "validating",
        "world_size",
    }
)
"""Attributes of a Trainer that are the same at all steps of a training."""


def _metrics(name: str) -> Unread:
    return Unread(f"reads `trainer.{name}`, which remembers earlier batches. Remove that.")


class _SilentTrainer:
    """A Trainer without its loggers and logged values, at a time; reading what may change is noted."""

    def __init__(self, trainer: L.Trainer, module: L.LightningModule, clock: Clock, reads: Reads) -> None:
        self._trainer = trainer
        self._clock = clock
        self._reads = reads
        self.lightning_module = self.model = module
        self.logger = DummyLogger()
        self.loggers = [self.logger]
        self.callback_metrics = _metrics("callback_metrics")
        self.logged_metrics = _metrics("logged_metrics")
        self.progress_bar_metrics = _metrics("progress_bar_metrics")
        self._complete = True

    def __setattr__(self, name: str, value: object) -> None:
        if "_complete" in vars(self):
            refuse(
                f"{current_line()} sets `trainer.{name}` in `training_step`, where data can decide it, so that a "
                "poisoned run goes on otherwise. Remove it."
            )
        object.__setattr__(self, name, value)

    @property
    def current_epoch(self) -> int:
        """The epoch; using it is noted."""
        return self._reads.ticks(self._clock, "epoch")

    @property
    def global_step(self) -> int:
        """The global step; using it is noted."""
        return self._reads.ticks(self._clock, "step")

    @property
    def optimizers(self) -> list[_SilentOptimizer]:
        """Stand-ins for the optimizers; their settings are noted as read."""
        optimizers = self._trainer.optimizers
        self._reads.live["optimizers"] = lambda: [_settings(optimizer) for optimizer in optimizers]
        return [_SilentOptimizer(optimizer) for optimizer in optimizers]

    @property
    def lr_scheduler_configs(self) -> list[SimpleNamespace]:
        """Stand-ins for the schedules of learning rates; their rates are noted as read."""
        schedulers = [config.scheduler for config in self._trainer.lr_scheduler_configs]
        self._reads.live["lr_scheduler_configs"] = lambda: [_progress(scheduler) for scheduler in schedulers]
        return [SimpleNamespace(scheduler=_SilentScheduler(scheduler)) for scheduler in schedulers]

    def __getattr__(self, name: str) -> object:
        value = getattr(self._trainer, name)
        if isinstance(value, _LIVE):
            return _ReadOnly(value, f"trainer.{name}", self)
        if name in _CONSTANT or name.startswith("__"):
            return value
        if isinstance(value, int | float | str | None):
            self._reads.live[name] = lambda: getattr(self._trainer, name)
        else:  # its inside may change at each step
            self._reads.clock.update(each.name for each in fields(self._clock))
            self._reads.live[name] = lambda: None
        return value


_LIVE = (*of_both(Strategy), *of_both(_Loop))  # type: ignore[type-abstract]
"""Parts of a Trainer in which its methods keep what steers training."""


class _ReadOnly:
    """A stand-in for a strategy or a loop, which a training step may read, but not change.

    Args:
        owner: the strategy or loop.
        name: of it.
        trainer: the stand-in for the Trainer, where it is noted what is read.
    """

    _owner: object
    _name: str
    _trainer: _SilentTrainer

    def __init__(self, owner: object, name: str, trainer: _SilentTrainer) -> None:
        for key, value in (("_owner", owner), ("_name", name), ("_trainer", trainer)):
            object.__setattr__(self, key, value)

    def __getattr__(self, name: str) -> object:
        if name in ("optimizers", "_optimizers", "_lightning_optimizers"):
            return self._trainer.optimizers
        if name in ("lightning_module", "model", "trainer"):
            return self._trainer if name == "trainer" else self._trainer.lightning_module
        value = getattr(self._owner, name)
        reads = self._trainer._reads
        if isinstance(value, _LIVE):
            return _ReadOnly(value, f"{self._name}.{name}", self._trainer)
        if isinstance(value, int | float | str | None):
            reads.live[f"{self._name}.{name}"] = lambda: getattr(self._owner, name)
        else:  # its inside may change at each step
            reads.clock.update(each.name for each in fields(self._trainer._clock))
        return value

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._trainer, f"{self._name}.{name}".removeprefix("trainer."), value)


class _SilentOptimizer:
    """A stand-in for an optimizer, with copies of its settings, that makes no step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = self
        self.defaults = dict(optimizer.defaults)
        # Entries of the user's own could hold anything, also what is remembered of earlier batches.
        known = {*optimizer.defaults, "params", "initial_lr"}
        self.param_groups = [
            _Settings({key: value for key, value in group.items() if key in known}) for group in optimizer.param_groups
        ]

    def step(self, *args: object, **kwargs: object) -> None:
        """Do nothing."""

    def zero_grad(self, *args: object, **kwargs: object) -> None:
        """Do nothing."""


class _Settings(MutableMapping[str, Any]):
    """The settings of a parameter group, which a training step may read, but neither change nor ask for others."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)

    def __getitem__(self, key: str) -> Any:
        if key not in self._settings:
            refuse(
                f"{current_line()} reads {key!r} of a parameter group, which is no setting of the optimizer. What is "
                "kept there can come from earlier batches. Keep it in the module."
            )
        return self._settings[key]

    def __setitem__(self, key: str, value: Any) -> None:
        refuse(
            f"{current_line()} sets {key!r} of the optimizer in `training_step`, where it can depend on data. Use a "
            "schedule, or set it in `on_train_batch_start` by the step alone."
        )

    def __delitem__(self, key: str) -> None:
        self[key] = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)


class _SilentScheduler:
    """A stand-in for a schedule of learning rates that stays where it is."""

    def __init__(self, scheduler: Any) -> None:
        self.last_epoch, self.rates = _progress(scheduler)

    def get_last_lr(self) -> list[float]:
        """Return the rates at this step."""
        return list(self.rates)

    def step(self, *args: object, **kwargs: object) -> None:
        """Do nothing."""


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, object]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _rates(scheduler: Any) -> list[float]:
    return [float(group["lr"]) for group in scheduler.optimizer.param_groups]


def _progress(scheduler: Any) -> tuple[int, list[float]]:
    """Return all that a stand-in for a schedule shows."""
    return scheduler.last_epoch, _rates(scheduler)


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
    """A stand-in for a `MetricCollection`, with its names and their order."""

    def __init__(self, collection: MetricCollection) -> None:
        super().__init__()
        self.names = [str(name) for name in collection]
        self.members = {str(name): _SilentMetric() for name in collection.keys(keep_base=True)}  # noqa: SIM118

    def __getitem__(self, name: str) -> _SilentMetric:
        return self.members[name] if name in self.members else self._named()[name]

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.members or name in self.names

    def keys(self, keep_base: bool = False) -> Iterable[str]:
        """Return the names, with prefix and postfix unless ``keep_base``."""
        return list(self.members) if keep_base else list(self.names)

    def values(self, copy_state: bool = True) -> Iterable[_SilentMetric]:
        """Return the stand-ins of the metrics."""
        return list(self.members.values())

    def items(self, keep_base: bool = False, copy_state: bool = True) -> Iterable[tuple[str, _SilentMetric]]:
        """Return names and stand-ins."""
        return (self.members if keep_base else self._named()).items()

    def _named(self) -> dict[str, _SilentMetric]:
        return dict(zip(self.names, self.members.values(), strict=True))

    def forward(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        return self.compute()

    def compute(self) -> dict[str, Tensor]:
        """Return the value of all stand-ins, by name."""
        return {name: metric_value() for name in self.names}

    def update(self, *args: object, **kwargs: object) -> None:
        """Do nothing."""

    def reset(self) -> None:
        """Do nothing."""
