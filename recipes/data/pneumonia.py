"""PneumoniaMNIST in two parts: images that a network is trained on first, and others whose labels can be flipped."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from typing_extensions import override

from recipes.data import medmnist
from recipes.data.loader import tensor_loader
from recipes.models.robust import pixels
from recipes.models.scan_classifier import scan_network

_DATASET = "pneumoniamnist"
_EPOCHS = 3
_BATCH = 100
_RATE = 1e-3


@dataclass(frozen=True)
class PretrainedState:
    """Parameters of `recipes.models.scan_classifier.scan_network` by name, where fine-tuning starts."""

    network: Mapping[str, Tensor]


class Pneumonia(L.LightningDataModule):
    """Images of normal and of pneumonia, as the problem of few, large steps on a wide head.

    The small network is trained on ``pretraining`` random images first, in `setup`. All others form one training
    batch; neither their images nor their labels have a part in the first training, so a certificate against flips of
    their labels for the head that is trained on them holds for the whole predictor.

    Batches are ``(images, classes)``: images from 0 to 1 of shape ``(batch, 1, 28, 28)``, classes 0 and 1 ``(batch,)``
    of the same type.

    Args:
        root: folder with MedMNIST's file, either directly or in a subfolder ``medmnist``. None for the environment
            variable ``AGT_DATA_ROOT``, and if that is not set for the folder ``data``. A missing file is downloaded to
            the subfolder.
        official: whether the file must have the official checksum.
        pretraining: number of images of the first training.
        samples: number of images of the training batch; None for all that the first training leaves.
        seed: of the split and of the first training.
        dtype: type of images, classes and of the first training.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        official: bool = True,
        pretraining: int = 1500,
        samples: int | None = None,
        seed: int = 0,
        dtype: Literal["float32", "float64"] = "float64",
    ) -> None:
        super().__init__()
        self.root = Path(root or os.environ.get("AGT_DATA_ROOT") or "data")
        self.official, self.pretraining, self.samples, self.seed = official, pretraining, samples, seed
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}

    @override
    def prepare_data(self) -> None:
        """Download the file if it is not there.

        Raises:
            ConnectionError: if it cannot be downloaded.
            ValueError: if what was downloaded has not the official checksum.
        """
        medmnist.prepare(_DATASET, self.root)

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read, split, and train the network on the first part; once.

        Raises:
            FileNotFoundError: if the file is not there.
            ValueError: if it is not the official one or broken.
        """
        if self.splits:
            return
        images, classes = self._read("train")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))  # it comes by class
        first, kept = order[: self.pretraining], order[self.pretraining :][: self.samples]
        self.network = pretrained(images[first], classes[first], self.seed)
        self.pretrained = PretrainedState({name: p.detach() for name, p in self.network.state_dict().items()})
        self.splits = {"train": (images[kept], classes[kept]), "test": self._read("test")}

    def _read(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        split = medmnist.read(_DATASET, self.root, part, official=self.official)
        return pixels(split.images, self.dtype), split.classes.to(self.dtype)

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the images whose labels can be flipped, in one batch."""
        return self._batch("train")

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the test images, in one batch."""
        return self._batch("test")

    def _batch(self, part: str) -> DataLoader[tuple[Tensor, ...]]:
        images, classes = self.splits[part]
        return tensor_loader(images, classes, batch_size=len(images))


def pretrained(images: Tensor, classes: Tensor, seed: int) -> nn.Sequential:
    """Return the small network after three epochs of Adam; the random state outside stays as it is.

    Args:
        images: ``(images, 1, 28, 28)``.
        classes: 0 and 1, ``(images,)`` of the same type, which the network gets as well.
        seed: of the initial parameters and of the order of images.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = scan_network().to(images.dtype)
        optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(images)).split(_BATCH):
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(network(images[rows]).squeeze(-1), classes[rows]).backward()
                optimizer.step()
    return network
