"""Checkpoints on disk that are whole at every moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from agt_lightning.errors import BoundsMismatchError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own, but a process that is killed while it saves leaves the last checkpoint as it was.

    Lightning writes to the folder for temporary files and moves the result: where that folder lies on another disk, the
    move is a copy, and half a copy is no checkpoint. Here the file is written beside its destination, and renamed when
    it has reached the disk.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     AtomicCheckpointIO().save_checkpoint({"steps": 3}, f"{folder}/last.ckpt")
        ...     AtomicCheckpointIO().load_checkpoint(f"{folder}/last.ckpt"), os.listdir(folder)
        ({'steps': 3}, ['last.ckpt'])
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        if storage_options is not None or not _is_local_file_protocol(str(path)):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)

    @override
    def load_checkpoint(
        self,
        path: _PATH,
        map_location: Callable[..., Any] | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            FileNotFoundError: if there is none.
            BoundsMismatchError: if it is damaged.
        """
        try:
            return super().load_checkpoint(path, map_location, weights_only)
        except (FileNotFoundError, PermissionError):
            raise
        except (EOFError, OSError, RuntimeError, UnpicklingError, ValueError) as error:
            raise BoundsMismatchError(
                f"Expected a whole checkpoint, but {path} is damaged or cut off: {error} Resume from another one."
            ) from error


def use_atomic_checkpoints(trainer: L.Trainer) -> None:
    """Put `AtomicCheckpointIO` in the place of Lightning's own; a plugin of the user's is left alone."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def boundless_checkpoints(trainer: L.Trainer) -> list[Checkpoint]:
    """Callbacks that save weights alone, without the bounds that resuming needs."""
    return [callback for callback in trainer.checkpoint_callbacks if getattr(callback, "save_weights_only", False)]
