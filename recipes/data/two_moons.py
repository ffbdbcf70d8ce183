"""Two moons in the plane, a few points of which every one can be moved."""

from typing import Literal

import torch
from sklearn.datasets import make_moons
from typing_extensions import override

from recipes.data.in_memory import InMemory, Split


class TwoMoons(InMemory):
    """Two interleaved moons in the plane, drawn by scikit-learn; nothing is downloaded.

    Features are the two coordinates, so the adversary's ε is in their units: each moon is half a circle of radius 1.
    Classes are floating point numbers, 0 for the arc above and 1 for the arc below. With coordinates alone, few
    training samples and three parts this is the problem of FullCert and MIBP-Cert; `HalfMoons` is that of figure 1.

    Args:
        samples: number of training points.
        held_out: number of points for validation, and of test points.
        noise: standard deviation of the Gaussian noise of each coordinate.
        batch_size: rows per training batch; None means all of them in one.
        seed: of the points; those of the three parts are drawn independently.
        dtype: type of features and classes.
    """

    features = 2

    def __init__(
        self,
        samples: int = 100,
        held_out: int = 200,
        noise: float = 0.1,
        batch_size: int | None = None,
        seed: int = 0,
        dtype: Literal["float32", "float64"] = "float64",
    ) -> None:
        super().__init__(batch_size)
        self.samples, self.held_out, self.noise, self.seed = samples, held_out, noise, seed
        self.dtype: torch.dtype = getattr(torch, dtype)

    @override
    def read(self) -> dict[str, Split]:
        sizes = {"train": self.samples, "val": self.held_out, "test": self.held_out}
        return {part: self._points(count, 3 * self.seed + index) for index, (part, count) in enumerate(sizes.items())}

    def _points(self, count: int, seed: int) -> Split:
        points, classes = make_moons(count, noise=self.noise, random_state=seed)
        return torch.as_tensor(points, dtype=self.dtype), torch.as_tensor(classes, dtype=self.dtype)
