"""The module as it would be if it had never seen training data: its hooks run again on a copy, with data withheld."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from agt_lightning.capture.clock import Clock, Reads
from agt_lightning.capture.withheld import Withheld
from agt_lightning.lightning.packages import base_of
from agt_lightning.lightning.silence import silence

_WITHHELD = {
    "on_train_epoch_start": (),
    "on_train_batch_start": ("batch",),
    "on_before_optimizer_step": ("optimizer",),
    "on_train_batch_end": ("outputs", "batch"),
    "on_train_epoch_end": (),
}
"""Hooks of a module that can set attributes between steps, with the names of their arguments that come from data."""


class WithoutData:
    """A copy of a module that runs the hooks of its training, and no training step.

    An attribute that a hook computes from the clock alone, such as an annealed weight, is the same in this copy. One
    that comes from data, or from trained parameters, which depend on data, is not: the copy keeps the parameters of
    the start of training.
    """

    def __init__(self) -> None:
        self._events: list[tuple[str, Clock]] = []
        self._module: L.LightningModule | None = None

    def note(self, module: L.LightningModule, hook: str, clock: Clock) -> None:
        """Note that a hook of the module is about to run; cheap."""
        if is_overridden(hook, module, base_of(module)):
            self._events.append((hook, clock))

    def module(self, start: L.LightningModule, trainer: L.Trainer) -> L.LightningModule:
        """Return the copy at the present time; the replica of the start if the module has no hooks.

        Args:
            start: a replica from before the first of the hooks that were noted. It shares the parameters that are
                trained, so it is copied at the first call, which comes before the first step.
            trainer: that the copy finds, silenced.
        """
        if self._module is None:
            if not self._events and not any(is_overridden(hook, start, base_of(start)) for hook in _WITHHELD):
                return start
            self._module = copy.deepcopy(start)
        events, self._events = self._events, []
        with _without_traces():
            for hook, clock in events:
                silence(self._module, trainer, clock, Reads())
                withheld = [Withheld(f"`{name}`", _nothing) for name in _WITHHELD[hook]]
                index = [clock.batch] if "batch" in _WITHHELD[hook] else []
                # A hook that looks at data stops here; attributes that it would have set are then not the same.
                with suppress(Exception):
                    getattr(self._module, hook)(*withheld, *index)
        return self._module


def _nothing() -> None:
    """Do nothing."""


@contextmanager
def _without_traces() -> Iterator[None]:
    """Keep the state of torch's generators, and what code prints to itself."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), contextlib.redirect_stdout(io.StringIO()):
        yield
