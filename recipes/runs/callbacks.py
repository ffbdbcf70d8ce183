"""What the recipes record beside the training."""

from typing import Any

import lightning as L
import torch
from typing_extensions import override

from agt_lightning import CertifiedTraining
from recipes.runs.certificates import mse_certificate


class MSEOverSteps(L.Callback):
    """Mean squared error on a fixed part of the validation set after every step: nominal, best and worst case.

    It must come after `CertifiedTraining` in the list of callbacks, whose bounds it reads.

    Args:
        samples: how many validation samples, the first ones, are used.
        stop_above: training ends once the worst case exceeds this; None means never. The bounds of the steps made so
            far stay valid only for a run that would have stopped there as well, so this is for pictures.

    Attributes:
        history: for every step, 0 for the untrained module, the values by name.
    """

    def __init__(self, samples: int = 2000, stop_above: float | None = None) -> None:
        if samples < 1:
            raise ValueError(f"Expected `samples` to be at least 1, but got {samples}.")
        self.samples = samples
        self.stop_above = stop_above
        self.history: list[dict[str, float]] = []

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the samples and record the untrained module."""
        batches = list(trainer.datamodule.val_dataloader())
        x, y = (torch.cat(parts)[: self.samples] for parts in zip(*batches, strict=True))
        self._batch = (x.to(pl_module.device), y.to(pl_module.device))
        self.history = []
        self._record(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step that has just been made."""
        self._record(trainer, pl_module)
        for name, value in self.history[-1].items():
            pl_module.log(f"steps/{name}", value)
        if self.stop_above is not None and self.history[-1]["worst MSE"] > self.stop_above:
            trainer.should_stop = True

    def _record(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        model = certified_training(trainer).certified_model(pl_module)
        self.history.append(mse_certificate(model, pl_module, [self._batch]))


def certified_training(trainer: L.Trainer) -> CertifiedTraining:
    """The trainer's `CertifiedTraining`.

    Raises:
        ValueError: if it has none.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, CertifiedTraining):
            return callback
    raise ValueError("Expected a `CertifiedTraining` among the trainer's callbacks, but there is none. Add one.")
