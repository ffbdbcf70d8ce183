"""Handwritten digits that come with scikit-learn."""

from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from typing_extensions import override

from recipes.data.features import Features
from recipes.data.in_memory import InMemory, Split

IMAGES = 1797


class Digits(InMemory):
    """The 1 797 images of 8 x 8 pixels of the UCI digits data, which scikit-learn brings along: no download.

    Images are permuted once, by ``seed``, and split. Pixels are numbers from 0 to 16, divided by 16.

    Args:
        features: frozen map of the pixels, fitted on training images without their labels, such as `PCA`; None for the
            64 pixels.
        held_out: number of images for validation, and of test images.
        batch_size: rows per training batch; None means all of them in one.
        seed: of the permutation.
        dtype: type of features.
    """

    def __init__(
        self,
        features: Features | None = None,
        held_out: int = 300,
        batch_size: int | None = None,
        seed: int = 0,
        dtype: Literal["float32", "float64"] = "float64",
    ) -> None:
        super().__init__(batch_size)
        if not 0 < held_out <= IMAGES // 3:
            raise ValueError(f"Expected `held_out` to be from 1 to {IMAGES // 3}, but got {held_out}.")
        self.features, self.held_out, self.seed = features, held_out, seed
        self.dtype: torch.dtype = getattr(torch, dtype)

    @override
    def read(self) -> dict[str, Split]:
        pixels, classes = load_digits(return_X_y=True)
        order = np.random.default_rng(self.seed).permutation(len(classes))
        train, val, test = np.split(order, [len(order) - 2 * self.held_out, len(order) - self.held_out])
        x, y = torch.as_tensor(pixels / 16), torch.as_tensor(classes)
        if self.features is not None:
            x = self.features.fit(x[train]).transform(x)
        x = x.to(self.dtype)
        return {part: (x[rows], y[rows]) for part, rows in (("train", train), ("val", val), ("test", test))}
