"""The user's `training_step` as a function of module and batch, with logging and metrics silenced."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import lightning as L
from torch import Tensor, nn

from agt_lightning.capture.source import as_forward
from agt_lightning.errors import CaptureError
from agt_lightning.lightning.silence import silence


class TrainingLoss:
    """The loss of `training_step`, or of `certified_objective` if the module has one, computed by a replica.

    Args:
        trainer: the Trainer that the replica has as ``self.trainer``, without its loggers.

    Attributes:
        reads_time: whether the step has read the epoch or the global step, so that a recording of it can be outdated.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self.trainer = trainer
        self.reads_time = False

    def __call__(self, module: nn.Module, batch: object) -> Tensor:
        """Return the scalar loss of a batch.

        Args:
            module: a replica of the LightningModule, never the one in training: it is silenced.
            batch: as `training_step` gets it.

        Raises:
            CaptureError: if `training_step` returns no loss.
        """
        assert isinstance(module, L.LightningModule)
        silence(module, self.trainer, self._note_time)
        return self._loss(self._result(module, batch))

    def as_trained(self, module: nn.Module, batch: object) -> Tensor:
        """Return the loss that `training_step` itself returns, whether or not there is a `certified_objective`.

        Args:
            module: as above.
            batch: as above.

        Raises:
            CaptureError: if `training_step` returns no loss.
        """
        return self._loss(self.output(module, batch))

    def output(self, module: nn.Module, batch: object) -> object:
        """Return what `training_step` returns, in the context in which training runs it."""
        assert isinstance(module, L.LightningModule)
        silence(module, self.trainer, self._note_time)
        plugin = self.trainer.strategy.precision_plugin
        with type(plugin).train_step_context(plugin):
            return self._training_step(module, batch)

    def _loss(self, result: object) -> Tensor:
        loss = result.get("loss") if isinstance(result, Mapping) else result
        if not isinstance(loss, Tensor):
            raise CaptureError(
                "Expected `training_step` to return the loss or a dict with the key 'loss', but got "
                f"{type(loss).__name__}. Return it; with manual optimization, use automatic optimization instead."
            )
        return loss

    def _note_time(self) -> None:
        self.reads_time = True

    def _result(self, module: L.LightningModule, batch: object) -> object:
        objective = getattr(module, "certified_objective", None)
        if objective is not None:
            chosen = as_forward(objective)(batch)
            if chosen is not None:
                return chosen
        return self._training_step(module, batch)

    def _training_step(self, module: L.LightningModule, batch: object) -> object:
        accepted = inspect.signature(module.training_step).parameters
        training_step = as_forward(module.training_step)
        extra = {"batch_idx": 0, "dataloader_idx": 0}
        named = {name: value for name, value in extra.items() if name in accepted}
        if len(accepted) > 1 and not named:
            return training_step(batch, 0)
        return training_step(batch, **named)
