"""Two of the three species of iris."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_iris
from typing_extensions import override

from recipes.data.in_memory import InMemory, Split

SPECIES = ("setosa", "versicolor", "virginica")


class Iris(InMemory):
    """Fisher's iris data as scikit-learn has them: 50 flowers of each species, four lengths in centimeters.

    Flowers are permuted once, by ``seed``, and split. Classes are floating point numbers, 0 for the first of the two
    species and 1 for the second. Setosa is linearly separable from either of the others, which are not from each other.

    Args:
        species: the two species, of `SPECIES`.
        standardize: whether features are standardized by mean and standard deviation of the training flowers; an
            adversary's ε is then in units of standard deviations, else in centimeters. Both are taken as known.
        held_out: number of flowers for validation, and of test flowers.
        batch_size: rows per training batch; None means all of them in one.
        seed: of the permutation.
        dtype: type of features and classes.
    """

    features = 4

    def __init__(
        self,
        species: Sequence[str] = ("setosa", "versicolor"),
        standardize: bool = True,
        held_out: int = 20,
        batch_size: int | None = None,
        seed: int = 0,
        dtype: Literal["float32", "float64"] = "float64",
    ) -> None:
        super().__init__(batch_size)
        if len(set(species)) != 2 or not set(species) <= set(SPECIES):
            raise ValueError(f"Expected `species` to be two of {', '.join(SPECIES)}, but got {', '.join(species)}.")
        if not 0 < held_out < 50:
            raise ValueError(f"Expected `held_out` to be from 1 to 49, but got {held_out}.")
        self.species, self.standardize, self.held_out, self.seed = tuple(species), standardize, held_out, seed
        self.dtype: torch.dtype = getattr(torch, dtype)

    @override
    def read(self) -> dict[str, Split]:
        lengths, species = load_iris(return_X_y=True)
        first, second = (SPECIES.index(name) for name in self.species)
        order = np.random.default_rng(self.seed).permutation(np.flatnonzero((species == first) | (species == second)))
        train, val, test = np.split(order, [len(order) - 2 * self.held_out, len(order) - self.held_out])
        if self.standardize:
            lengths = (lengths - lengths[train].mean(axis=0)) / lengths[train].std(axis=0)
        x = torch.as_tensor(lengths, dtype=self.dtype)
        y = torch.as_tensor(species == second, dtype=self.dtype)
        return {part: (x[rows], y[rows]) for part, rows in (("train", train), ("val", val), ("test", test))}
