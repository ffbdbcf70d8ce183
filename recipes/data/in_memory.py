"""Data sets that fit in memory and come in one order."""

from abc import abstractmethod

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from recipes.data.loader import tensor_loader

Split = tuple[Tensor, Tensor]


class InMemory(L.LightningDataModule):
    """Features and targets in three parts; each held-out part is one batch.

    Args:
        batch_size: rows per training batch, the last, shorter one included; None means all of them in one.

    Attributes:
        splits: features and targets of ``"train"``, ``"val"`` and ``"test"``; empty before `setup`.
    """

    def __init__(self, batch_size: int | None) -> None:
        super().__init__()
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"Expected `batch_size` to be at least 1, or None for all, but got {batch_size}.")
        self.batch_size = batch_size
        self.splits: dict[str, Split] = {}

    @abstractmethod
    def read(self) -> dict[str, Split]:
        """Return features ``(samples, features)`` and targets ``(samples,)`` of all parts."""

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read and split; once."""
        self.splits = self.splits or self.read()

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the training samples, in their one order."""
        return self._loader("train", self.batch_size)

    @override
    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the samples for validation."""
        return self._loader("val", None)

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the test samples."""
        return self._loader("test", None)

    def _loader(self, part: str, batch_size: int | None) -> DataLoader[tuple[Tensor, ...]]:
        features, targets = self.splits[part]
        return tensor_loader(features, targets, batch_size=batch_size or len(targets))
