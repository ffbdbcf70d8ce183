"""Half-moons with polynomial features, the classification problem of figure 1."""

from typing import Literal

import lightning as L
import torch
from sklearn.datasets import make_moons
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from recipes.data.loader import tensor_loader


class HalfMoons(L.LightningDataModule):
    """Two interleaved moons in the plane, drawn by scikit-learn; nothing is downloaded.

    `make_moons` calls the outer moon, the arc above, class 0 and the arc below class 1. The upper moon is moved up
    by ``shift``, away from the lower one. Features are x, x² and x³ of both coordinates, so the adversary's ε is in
    units of these six features. All training points form one batch, in a fixed order.

    Args:
        samples: number of training points, and of held-out points.
        noise: standard deviation of the Gaussian noise of each coordinate.
        shift: added to the second coordinate of class 0.
        batch_size: rows per training batch; None means all of them in one.
        seed: seed of the training points; the held-out points are drawn with ``seed + 1``. They serve for
            validation and for the test alike, since nothing is chosen by them.
        dtype: type of the features.
    """

    classes = 2
    features = 6

    def __init__(
        self,
        samples: int = 3000,
        noise: float = 0.1,
        shift: float = 0.2,
        batch_size: int | None = None,
        seed: int = 0,
        dtype: Literal["float32", "float64"] = "float64",
    ) -> None:
        super().__init__()
        self.samples, self.noise, self.shift, self.seed = samples, noise, shift, seed
        self.batch_size = batch_size or samples
        self.dtype: torch.dtype = getattr(torch, dtype)

    def points(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Return points of the plane ``(samples, 2)`` and their classes ``(samples,)``."""
        seed = self.seed if split == "train" else self.seed + 1
        points, labels = make_moons(self.samples, noise=self.noise, random_state=seed)
        points[labels == 0, 1] += self.shift
        return torch.as_tensor(points, dtype=self.dtype), torch.as_tensor(labels, dtype=torch.long)

    @staticmethod
    def polynomial_features(points: Tensor) -> Tensor:
        """Return x, x² and x³ of both coordinates: ``(..., 2)`` becomes ``(..., 6)``."""
        return torch.cat([points, points**2, points**3], dim=-1)

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the training points."""
        return self._loader("train", self.batch_size)

    @override
    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the held-out points."""
        return self._loader("test", self.samples)

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the held-out points."""
        return self._loader("test", self.samples)

    def _loader(self, split: Literal["train", "test"], batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
        points, labels = self.points(split)
        return tensor_loader(self.polynomial_features(points), labels, batch_size=batch_size)
