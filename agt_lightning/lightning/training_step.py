"""The user's `training_step` as a function of module and batch, with logging and metrics silenced."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import lightning as L
from torch import Tensor, nn

from agt_lightning.capture.clock import Clock, Reads
from agt_lightning.capture.source import as_forward
from agt_lightning.errors import CaptureError
from agt_lightning.lightning.metric_checks import checks_as_branches
from agt_lightning.lightning.packages import LIGHTNING_MODULES
from agt_lightning.lightning.silence import silence
from agt_lightning.lightning.without_data import WithoutData


class TrainingLoss:
    """The loss of `training_step`, or of `certified_objective` if the module has one, computed by a replica.

    Args:
        trainer: the Trainer that the replica has as ``self.trainer``, without its loggers.

    Attributes:
        now: the time of the present training step, at which the loss is computed outside of `at`.
        hooks: the module without data.
        own_objective: whether a `certified_objective` of the user's was certified in place of `training_step`; None
            before the first recording.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self.trainer = trainer
        self.now = Clock()
        self.hooks = WithoutData()
        self._recording: tuple[Clock, Reads] | None = None
        self.own_objective: bool | None = None

    def __call__(self, module: nn.Module, batch: object) -> Tensor:
        """Return the scalar loss of a batch.

        Args:
            module: a replica of the LightningModule, never the one in training: it is silenced.
            batch: as `training_step` gets it.

        Raises:
            CaptureError: if `training_step` returns no loss.
        """
        assert isinstance(module, LIGHTNING_MODULES)
        with checks_as_branches():
            return _loss(self._result(module, batch, *self._silenced(module)))

    def as_trained(self, module: nn.Module, batch: object) -> Tensor:
        """Return the loss that `training_step` itself returns, whether or not there is a `certified_objective`.

        Args:
            module: as above.
            batch: as above.

        Raises:
            CaptureError: if `training_step` returns no loss.
        """
        return _loss(self.output(module, batch))

    def output(self, module: nn.Module, batch: object) -> object:
        """Return what `training_step` returns, in the context in which training runs it."""
        assert isinstance(module, LIGHTNING_MODULES)
        plugin = self.trainer.strategy.precision_plugin
        with type(plugin).train_step_context(plugin):
            return _output(module, batch, *self._silenced(module))

    def _silenced(self, module: L.LightningModule) -> tuple[Clock, Reads]:
        """Silence a replica; return the time that it finds, and where it is noted what it reads."""
        clock, reads = self._recording or (self.now, Reads())
        silence(module, self.trainer, clock, reads)
        return clock, reads

    @contextmanager
    def at(self, clock: Clock, reads: Reads) -> Iterator[None]:
        """Compute the loss at a time, and note what it reads; see `TimedLoss`."""
        self._recording = (clock, reads)
        try:
            yield
        finally:
            self._recording = None

    def without_data(self, start: nn.Module) -> nn.Module:
        """Return the module as it would be if it had never seen data; see `TimedLoss`."""
        assert isinstance(start, LIGHTNING_MODULES)
        return self.hooks.module(start, self.trainer)

    def _result(self, module: L.LightningModule, batch: object, clock: Clock, reads: Reads) -> object:
        objective = getattr(module, "certified_objective", None)
        if objective is not None:
            chosen = as_forward(objective)(batch)
            if chosen is not None:
                self.own_objective = True
                return chosen
        self.own_objective = bool(self.own_objective)
        return _output(module, batch, clock, reads)


def _output(module: L.LightningModule, batch: object, clock: Clock, reads: Reads) -> object:
    """Return what the `training_step` of a silenced replica returns."""
    accepted = inspect.signature(module.training_step).parameters
    training_step = as_forward(module.training_step)
    batch_idx = reads.ticks(clock, "batch") if _uses_index(module.training_step) else clock.batch
    extra = {"batch_idx": batch_idx, "dataloader_idx": 0}
    named = {name: value for name, value in extra.items() if name in accepted}
    if len(accepted) > 1 and not named:
        return training_step(batch, batch_idx)
    return training_step(batch, **named)


def _loss(result: object) -> Tensor:
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor):
        raise CaptureError(
            "Expected `training_step` to return the loss or a dict with the key 'loss', but got "
            f"{type(loss).__name__}. Return it; with manual optimization, use automatic optimization instead."
        )
    return loss


def _uses_index(training_step: Callable[..., object]) -> bool:
    """Return whether the code of a step loads its argument for the batch's number; true if that is not known."""
    function = getattr(training_step, "__func__", training_step)
    code = getattr(function, "__code__", None)
    names = list(inspect.signature(training_step).parameters)
    name = "batch_idx" if "batch_idx" in names or len(names) < 2 else names[1]
    if code is None or hasattr(function, "__wrapped__") or name not in code.co_varnames[: code.co_argcount]:
        return True
    if name in code.co_cellvars or not _SEES_ARGUMENTS.isdisjoint(code.co_names):
        return True
    return any(step.opname.startswith("LOAD") and _names(step.argval, name) for step in dis.get_instructions(code))


def _names(argument: object, name: str) -> bool:
    """Return whether an instruction's argument is a name, or several names with this one among them."""
    return name in argument if isinstance(argument, tuple) else argument == name


_SEES_ARGUMENTS = frozenset({"locals", "vars", "eval", "exec", "currentframe", "_getframe"})
"""Functions by which code can read its arguments without loading them."""
