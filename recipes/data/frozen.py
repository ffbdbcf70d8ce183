"""Images behind a feature map that is fitted once, without labels, for a linear head."""

import os
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from recipes.data.features import FeatureMap, Features
from recipes.data.loader import content_loader, tensor_loader


class FrozenFeatures(L.LightningDataModule):
    """A data set behind a feature map that is fitted once and then frozen.

    The map is fitted on the training images alone: flipped training labels do not change it, so a certificate for
    the head that is trained on these features holds for the whole predictor. It does not if images are poisoned too.

    Args:
        features: how to get from images to features; fitted in `setup`.
        root: folder with the files. None means the environment variable ``AGT_DATA_ROOT``, and if that is not set the
            folder ``data``.
        batch_size: rows per training batch; None means all of them in one.
        test_samples: the first so many test samples serve for validation and test; None means all. Nothing may be
            chosen by them that is then reported on them.
        target: training targets, ``"class"`` for indices ``(batch,)`` or ``"one_hot"`` for zeros and ones
            ``(batch, classes)`` of type ``dtype``, as a mean squared error needs them. Held-out targets are always
            indices.
        dtype: type of features and one-hot targets; the features are computed in float64.
        content_batches: number of training batches, if each sample is in the one that its content chooses; None means
            that they are cut from the samples' order by ``batch_size``.
    """

    classes: ClassVar[int]
    """Number of classes."""

    def __init__(
        self,
        features: Features,
        root: str | Path | None = None,
        batch_size: int | None = None,
        test_samples: int | None = None,
        target: Literal["class", "one_hot"] = "class",
        dtype: Literal["float32", "float64"] = "float64",
        content_batches: int | None = None,
    ) -> None:
        super().__init__()
        if target not in ("class", "one_hot"):
            raise ValueError(f"Expected `target` to be 'class' or 'one_hot', but got {target!r}.")
        for name, value in (("batch_size", batch_size), ("test_samples", test_samples)):
            if value is not None and value < 1:
                raise ValueError(f"Expected `{name}` to be at least 1, or None for all, but got {value}.")
        if batch_size is not None and content_batches is not None:
            raise ValueError("Expected one of `batch_size` and `content_batches`, but got both.")
        self.root = Path(root or os.environ.get("AGT_DATA_ROOT") or "data")
        self.features, self.target = features, target
        self.batch_size, self.test_samples, self.content_batches = batch_size, test_samples, content_batches
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.feature_map: FeatureMap | None = None
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def read(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Return images ``(samples, height, width)`` and their classes ``(samples,)``, integers."""

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read, fit the feature map on the training images, map; once."""
        if self.splits:
            return
        images, labels = self.read("train")
        test_images, test_labels = (values[: self.test_samples] for values in self.read("test"))
        self.feature_map = self.features.fit(images)
        self.splits = {
            "train": (self.feature_map.of_training(images).to(self.dtype), self._encode(labels)),
            "test": (self.feature_map.transform(test_images).to(self.dtype), test_labels),
        }

    def _encode(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self.classes).to(self.dtype) if self.target == "one_hot" else labels

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return training features and targets, in their one order or in batches by content."""
        features, target = self.splits["train"]
        if self.content_batches is not None:
            return content_loader(features, target, batches=self.content_batches)
        return tensor_loader(features, target, batch_size=self.batch_size or len(features))

    @override
    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return test features and classes."""
        return self.test_dataloader()

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return test features and classes."""
        features, labels = self.splits["test"]
        return tensor_loader(features, labels, batch_size=len(features))
