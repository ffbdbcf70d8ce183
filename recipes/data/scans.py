"""Scans of healthy and ill patients, with a disease that is new: the classification problem of figure 4."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from recipes.data import medmnist
from recipes.data.mixing import mixed_batches
from recipes.data.tensors import load_tensors, save_tensors
from recipes.models.robust import RobustTraining, pixels

_FORMAT = "agt_lightning scans 1"
_HISTORY = "history"
_NEW_SHARE = 0.5


@dataclass(frozen=True)
class PretrainedScans:
    """The network after its training on the clean images.

    Args:
        network: state of `recipes.models.scan_classifier.scan_network`.
        history: cross-entropy and gradient width by epoch, see `RobustTraining.run`.
        path: the file that keeps both.
    """

    network: Mapping[str, Tensor]
    history: Tensor
    path: Path

    @classmethod
    def of(cls, images: Tensor, abnormal: Tensor, training: RobustTraining, path: Path) -> "PretrainedScans":
        """Read the file at ``path``, or train and write it.

        Raises:
            ValueError: if the file is broken.
        """
        if not path.is_file():
            network, history = training.run(images, abnormal)
            save_tensors({_HISTORY: history, **{name: p.detach() for name, p in network.state_dict().items()}}, path)
        tensors = load_tensors(path)
        if _HISTORY not in tensors:
            raise ValueError(f"Expected `{_HISTORY}` in {path}, but got {', '.join(tensors)}. Delete it.")
        return cls({name: tensors[name] for name in tensors if name != _HISTORY}, tensors[_HISTORY], path)


class Scans(L.LightningDataModule):
    """A data set of MedMNIST as two classes, normal and abnormal, of which a part of the abnormal images is new.

    The small network is trained on the clean images first, by ``pretraining``. The new ones have no part in that, so a
    certificate for the head that is trained on both, with poison among new images, holds for the whole predictor.

    A training batch is ``(images, abnormal, is_new)``: images from 0 to 1 of shape ``(batch, 1, 28, 28)``, classes
    0 and 1 of the same type, booleans. Half of it are new images, half clean ones, which are used again where there are
    too few. Every epoch has the same batches. In test batches, ``is_new`` marks the images of the new class.

    Args:
        dataset: name in MedMNIST, such as ``octmnist``.
        normal: the class of normal images; all others are abnormal.
        new: the class that new images are of.
        new_share: part of that class's training images that is new, drawn at random; the rest is clean.
        pretraining: the first training, over the clean images.
        root: folder with MedMNIST's file, either directly or in a subfolder ``medmnist``. None means the environment
            variable ``AGT_DATA_ROOT``, and if that is not set the folder ``data``. A missing file is downloaded to the
            subfolder.
        official: whether the file must have the official checksum.
        batch_size: images per training batch; fewer where there are fewer new ones.
        seed: of the choice of new images and of the order of clean and of new ones in the batches.
        cache: folder where the result of the first training is kept, to be found by images, classes and settings.
        dtype: type of images and classes.
    """

    def __init__(
        self,
        dataset: str,
        normal: int,
        new: int,
        pretraining: RobustTraining,
        new_share: float = 1.0,
        root: str | Path | None = None,
        official: bool = True,
        batch_size: int = 6000,
        seed: int = 0,
        cache: str | Path = "outputs/pretrained",
        dtype: Literal["float32", "float64"] = "float64",
    ) -> None:
        super().__init__()
        if not 0 < new_share <= 1:
            raise ValueError(f"Expected `new_share` to be above 0 and at most 1, but got {new_share}.")
        if normal == new:
            raise ValueError(f"Expected `new` to be an abnormal class, but got {new}, the normal one.")
        if batch_size < 2:
            raise ValueError(f"Expected `batch_size` to leave room for a new and a clean image, but got {batch_size}.")
        self.dataset, self.normal, self.new, self.new_share = dataset, normal, new, new_share
        self.pretraining = pretraining
        self.root = Path(root or os.environ.get("AGT_DATA_ROOT") or "data")
        self.official, self.cache = official, Path(cache)
        self.batch_size, self.seed = batch_size, seed
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.parts: dict[str, list[int]] = {}

    @override
    def prepare_data(self) -> None:
        """Download the file if it is not there.

        Raises:
            ConnectionError: if it cannot be downloaded.
            ValueError: if what was downloaded has not the official checksum.
        """
        medmnist.prepare(self.dataset, self.root)

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read, split into clean and new, train the network or find that it is; once.

        Raises:
            FileNotFoundError: if the file is not there.
            ValueError: if it is not the official one or broken, or a part is empty.
        """
        if self.parts:
            return
        train, test = self._read("train"), self._read("test")
        generator = torch.Generator().manual_seed(self.seed)
        abnormal, new = train.classes != self.normal, self._chosen(train.classes, generator)
        if not (new.any() and (abnormal & ~new).any() and (~abnormal).any()):
            raise ValueError(
                f"Expected new, clean abnormal and normal images in {self.dataset}, but got {int(new.sum())}, "
                f"{int((abnormal & ~new).sum())} and {int((~abnormal).sum())}. Choose other classes or `new_share`."
            )
        path = self.cache / f"{self.dataset}-{self._fingerprint(train, new)[:16]}.safetensors"
        self.pretrained = PretrainedScans.of(train.images[~new], abnormal[~new], self.pretraining, path)
        self.train = Scanned(train.images, abnormal, new, self.dtype)
        self.test = Scanned(test.images, test.classes != self.normal, test.classes == self.new, self.dtype)
        self.parts = {"clean": _shuffled(~new, generator), "new": _shuffled(new, generator)}

    def _read(self, part: Literal["train", "test"]) -> medmnist.Split:
        return medmnist.read(self.dataset, self.root, part, official=self.official)

    def _chosen(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mask of training images that are new."""
        candidates = (classes == self.new).nonzero().squeeze(1)
        order = torch.randperm(len(candidates), generator=generator)
        new = torch.zeros(len(classes), dtype=torch.bool)
        new[candidates[order[: round(self.new_share * len(candidates))]]] = True
        return new

    def _fingerprint(self, train: medmnist.Split, new: Tensor) -> str:
        """Return a digest of the clean images, their classes and the settings of the first training."""
        digest = hashlib.sha256(f"{_FORMAT} {self.normal} {astuple(self.pretraining)}\n".encode())
        digest.update(train.classes[~new].numpy().tobytes())
        digest.update(train.images[~new].numpy().tobytes())
        return digest.hexdigest()

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return new images, and as many clean ones beside them."""
        batches = mixed_batches(self.parts["clean"], self.parts["new"], self.batch_size, _NEW_SHARE)
        return DataLoader(self.train, sampler=batches, batch_size=None)

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the test images, in their order."""
        return DataLoader(self.test, sampler=[list(range(len(self.test)))], batch_size=None)


class Scanned(Dataset[tuple[Tensor, ...]]):
    """Images as bytes, which become numbers batch by batch.

    Args:
        images: ``(images, 28, 28)`` of type uint8.
        abnormal: ``(images,)``, booleans.
        is_new: ``(images,)``, booleans.
        dtype: type of the numbers.
    """

    def __init__(self, images: Tensor, abnormal: Tensor, is_new: Tensor, dtype: torch.dtype) -> None:
        self.images, self.abnormal, self.is_new, self.dtype = images, abnormal, is_new, dtype

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: list[int]) -> tuple[Tensor, ...]:
        """A batch: images from 0 to 1 ``(batch, 1, 28, 28)``, classes 0 and 1 of the same type, booleans."""
        return pixels(self.images[rows], self.dtype), self.abnormal[rows].to(self.dtype), self.is_new[rows]


def _shuffled(mask: Tensor, generator: torch.Generator) -> list[int]:
    """Return the positions where the mask is true, in a random order."""
    positions = mask.nonzero().squeeze(1)
    return positions[torch.randperm(len(positions), generator=generator)].tolist()
