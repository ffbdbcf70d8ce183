"""Chest X-rays of PneumoniaMNIST as frozen features for a linear head."""

from pathlib import Path
from typing import Literal

from torch import Tensor
from typing_extensions import override

from recipes.data import medmnist
from recipes.data.features import Features
from recipes.data.frozen import FrozenFeatures

_DATASET = "pneumoniamnist"


class PneumoniaFeatures(FrozenFeatures):
    """PneumoniaMNIST behind a feature map: normal (0) and pneumonia (1); see `FrozenFeatures`.

    Samples have the order of the file. The map is fitted on all training images; unlike `recipes.data.Pneumonia`, no
    label is used by it.

    Args:
        features: how to get from images to features; fitted in `setup`.
        root: folder with MedMNIST's file, directly or in a subfolder ``medmnist``; a missing file is downloaded there.
        official: whether the file must have the official checksum.
        test_samples: the first so many test samples serve for validation and test; None means all 624.
        dtype: type of features; they are computed in float64.
    """

    classes = 2

    def __init__(
        self,
        features: Features,
        root: str | Path | None = None,
        official: bool = True,
        test_samples: int | None = None,
        dtype: Literal["float32", "float64"] = "float64",
    ) -> None:
        super().__init__(features, root, test_samples=test_samples, dtype=dtype)
        self.official = official

    @override
    def prepare_data(self) -> None:
        """Download the file if it is not there.

        Raises:
            ConnectionError: if it cannot be downloaded.
            ValueError: if what was downloaded has not the official checksum.
        """
        medmnist.prepare(_DATASET, self.root)

    @override
    def read(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        split = medmnist.read(_DATASET, self.root, part, official=self.official)
        return split.images, split.classes.long()
