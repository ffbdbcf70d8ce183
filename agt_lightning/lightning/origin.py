"""What a module was before its first certified step, and the hooks that it has run since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
from torch import nn

from agt_lightning.capture.clock import Clock
from agt_lightning.certificates.start import StartOfTraining
from agt_lightning.lightning.resume import BUFFERS_KEY
from agt_lightning.lightning.without_data import WithoutData


@dataclass(frozen=True)
class Origin:
    """A module before its first certified step, over all its fits.

    Args:
        start: a replica of that time.
        hooks: the same module without data, at the present time.
    """

    start: StartOfTraining
    hooks: WithoutData

    @classmethod
    def of(cls, module: L.LightningModule, checkpoint: Mapping[str, Any] | None = None) -> Origin:
        """Return the origin of a module that is about to be trained, which an earlier `fit` may have kept.

        Args:
            module: not changed.
            checkpoint: that this training continues from; None if it starts anew. What its training wrote into buffers
                counts as written by this one.

        Raises:
            CaptureError: if the module cannot be copied.
        """
        if checkpoint is None and module in _KEPT:
            return _KEPT[module]
        buffers = None if checkpoint is None else checkpoint.get(BUFFERS_KEY)
        return cls(StartOfTraining.of(module, buffers), WithoutData())

    def note_hook(self, module: L.LightningModule, hook: str, clock: Clock) -> None:
        """Note that a hook of the module is about to run."""
        self.hooks.note(module, hook, clock)

    def keep(self, module: nn.Module) -> None:
        """Keep this origin for later fits of the module, since data have been able to change it."""
        _KEPT[module] = self


_KEPT: WeakKeyDictionary[nn.Module, Origin] = WeakKeyDictionary()
"""Origins of modules that made certified steps; none of them holds the module itself."""
