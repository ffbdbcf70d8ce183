"""Steering angles for frames of a drive, the regression problem of figure 6."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from recipes.data.loader import tensor_loader
from recipes.data.mixing import mixed_batches
from recipes.data.pretrained import Pretrained
from recipes.data.udacity import Drive, read_drive

_NEW_SHARE = 0.3


class Steering(L.LightningDataModule):
    """A drive in three parts, by time: clean frames, new ones, and frames for the test.

    PilotNet is trained on the clean frames first. Its convolutions are then frozen and applied to all frames, once:
    this module serves their features. Neither depends on an angle of the new frames, so a certificate against moved
    angles of new frames for the head that is trained on these features holds for the whole predictor. It does not cover
    moved pixels.

    A training batch is ``(features, angles, is_new)``: 30 % new frames, 70 % clean ones beside them, which are used
    again where there are too few. Every epoch has the same batches. Test batches are ``(features, angles)``.

    Args:
        root: folder with the drives. None means the environment variable ``AGT_DATA_ROOT``, and if that is not set the
            folder ``data``. Nothing is downloaded.
        drives: names of their folders, in order; several are put one behind the other.
        clean: part of all frames that is clean.
        test: part of all frames for validation and test, the last ones. What is between is new.
        batch_size: frames per training batch.
        epochs: of the first training, over the clean frames.
        seed: of the first training and of the order of clean and of new frames in the batches.
        cache: folder where the result of the first training is kept, to be found by frames, angles and settings.
        dtype: type of features and angles.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        drives: Sequence[str] = ("udacity_ch2_001",),
        clean: float = 0.6,
        test: float = 0.2,
        batch_size: int = 10_000,
        epochs: int = 5,
        seed: int = 0,
        cache: str | Path = "outputs/pretrained",
        dtype: Literal["float32", "float64"] = "float64",
    ) -> None:
        super().__init__()
        if not (clean > 0 and test > 0 and clean + test < 1):
            raise ValueError(
                f"Expected `clean` and `test` to be positive and to leave new frames, but got {clean} and {test}."
            )
        if round(batch_size * _NEW_SHARE) < 1:
            raise ValueError(f"Expected `batch_size` to leave room for new frames, but got {batch_size}.")
        self.root = Path(root or os.environ.get("AGT_DATA_ROOT") or "data")
        self.drives, self.cache = tuple(drives), Path(cache)
        self.clean, self.test = clean, test
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.splits: dict[str, slice] = {}

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read the drives, train the convolutions or find that they are, split; once.

        Raises:
            FileNotFoundError: if a drive's log or one of its frames is missing.
            ValueError: if one of them is broken, or there are too few frames.
        """
        if self.splits:
            return
        parts = [read_drive(self.root / name) for name in self.drives]
        self.drive = Drive(sum((part.frames for part in parts), ()), torch.cat([part.angles for part in parts]))
        count = len(self.drive.frames)
        clean, test = round(count * self.clean), round(count * self.test)
        if not (clean and test and count - clean - test > 0):
            raise ValueError(f"Expected frames in every part of the drive, but got {count} in all. Use a longer one.")
        self.pretrained = Pretrained.of(self.drive, clean, self.epochs, self.seed, self.cache)
        self.features = self.pretrained.features.to(self.dtype)
        self.angles = self.drive.angles.to(self.dtype)
        self.splits = {
            "clean": slice(0, clean),
            "new": slice(clean, count - test),
            "test": slice(count - test, count),
        }

    def _positions(self, split: str, generator: torch.Generator) -> list[int]:
        """Return the positions of the frames of a part, in a random order."""
        everything = torch.arange(len(self.angles))[self.splits[split]]
        return everything[torch.randperm(len(everything), generator=generator)].tolist()

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return new frames, and clean ones beside them."""
        generator = torch.Generator().manual_seed(self.seed)
        clean, new = (self._positions(split, generator) for split in ("clean", "new"))
        batches = mixed_batches(clean, new, self.batch_size, _NEW_SHARE)
        is_new = torch.zeros(len(self.angles), dtype=torch.bool)
        is_new[self.splits["new"]] = True
        dataset = TensorDataset(self.features, self.angles, is_new)
        return DataLoader(dataset, sampler=batches, batch_size=None)

    @override
    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the test frames."""
        return self.test_dataloader()

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the last frames, in order of time."""
        rows = self.splits["test"]
        return tensor_loader(self.features[rows], self.angles[rows], batch_size=len(self.angles))
