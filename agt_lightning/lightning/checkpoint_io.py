"""Checkpoint files that are complete at every moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from agt_lightning.errors import BoundsMismatchError
from agt_lightning.lightning.packages import of_both


class AtomicCheckpointIO(TorchCheckpointIO):
    """A `TorchCheckpointIO` that leaves the last checkpoint intact if the process is killed while it saves.

    Lightning writes to the folder for temporary files and moves the result. If that folder is on another disk, the move
    is a copy, which can be cut off. Here the file is written beside its destination, and renamed after it has reached
    the disk.

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
            FileNotFoundError: if there is no such file.
            BoundsMismatchError: if it is damaged.
        """
        try:
            return super().load_checkpoint(path, map_location, weights_only)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # whatever reading damaged bytes comes upon
            raise BoundsMismatchError(
                f"Expected a whole checkpoint, but {path} is damaged or cut off: {error} Resume from another one."
            ) from error


def use_atomic_checkpoints(trainer: L.Trainer) -> None:
    """Replace Lightning's own checkpoint plugin by `AtomicCheckpointIO`; a plugin of the user is kept."""
    if type(trainer.strategy.checkpoint_io) in of_both(TorchCheckpointIO):
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def warn_of_boundless_checkpoints(trainer: L.Trainer) -> None:
    """Warn if a callback saves weights alone, without the bounds that resuming needs."""
    if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
        rank_zero_warn(
            "`ModelCheckpoint(save_weights_only=True)` saves no bounds: training cannot be resumed from its files, "
            "and they certify nothing. Set it to False."
        )
