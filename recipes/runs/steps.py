"""The mean squared error that is certified after every step of a training."""

from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from typing_extensions import override

from agt_lightning.adversaries.several import describe, names_of
from recipes.runs.certificates import mse_certificate
from recipes.runs.run import Run, certified_training

FILE = "steps.csv"


class MSEOverSteps(L.Callback):
    """A recorder of the mean squared error on a fixed part of the validation set after every step.

    It must come after `CertifiedTraining` in the list of callbacks, whose bounds it reads.

    Args:
        samples: number of validation samples, from the first on.
        stop_above: training ends once the worst case exceeds this; None if it never does, as it must be with several
            adversaries. The bounds of the steps made so far then hold only for runs that would have stopped there as
            well, so this is for pictures.

    Attributes:
        histories: for each adversary, by `agt_lightning.adversaries.several.describe`: best, nominal and worst case by
            name, for every step; entry 0 is of the untrained module.
    """

    def __init__(self, samples: int = 2000, stop_above: float | None = None) -> None:
        if samples < 1:
            raise ValueError(f"Expected `samples` to be at least 1, but got {samples}.")
        self.samples = samples
        self.stop_above = stop_above
        self.histories: dict[str, list[dict[str, float]]] = {}

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the samples and record the untrained module.

        Raises:
            ValueError: with ``stop_above`` and several adversaries, each of which would stop at a step of its own.
        """
        if self.stop_above is not None and len(certified_training(trainer).adversaries) > 1:
            raise ValueError(
                "Expected one adversary with `stop_above`, since each stops at a step of its own, but got several. "
                "Train once for each, or set `stop_above` to null."
            )
        batches = list(trainer.datamodule.val_dataloader())
        x, y = (torch.cat(parts)[: self.samples] for parts in zip(*batches, strict=True))
        self._batch = (x.to(pl_module.device), y.to(pl_module.device))
        self.histories = {}
        self._record(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step that has just been made."""
        adversaries = certified_training(trainer).adversaries
        latest = self._record(trainer, pl_module)
        for name, errors in zip(names_of(adversaries), latest, strict=True):
            for case, value in errors.items():
                pl_module.log("/".join(filter(None, ["steps", name, case])), value)
        if self.stop_above is not None and latest[0]["worst MSE"] > self.stop_above:
            trainer.should_stop = True

    def _record(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[dict[str, float]]:
        """Add an entry for each adversary, and return these."""
        certified, latest = certified_training(trainer), []
        for adversary in certified.adversaries:
            model = certified.certified_model(pl_module, adversary=adversary)
            latest.append(mse_certificate(model, pl_module, [self._batch]))
            self.histories.setdefault(describe(adversary), []).append(latest[-1])
        return latest


def recorded(run: Run) -> list[dict[str, float]]:
    """Return what the run's `MSEOverSteps` has of its adversary.

    Raises:
        ValueError: if it has none.
    """
    for callback in run.callbacks:
        if isinstance(callback, MSEOverSteps):
            return callback.histories[describe(run.adversary)]
    raise ValueError("Expected a `MSEOverSteps` among the run's callbacks. Add `callbacks=mse_over_steps`.")


def record_steps(run: Run) -> Path:
    """Write ``steps.csv`` to the folder of a run with a `MSEOverSteps`: one row per step, from 0 on."""
    path = run.output_dir / FILE
    pd.DataFrame(recorded(run)).rename_axis("step").to_csv(path)
    return path
