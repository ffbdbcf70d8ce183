"""The region of the plane where the predictions of a trained model are certified, as data for pictures."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from recipes.data.halfmoons import HalfMoons
from recipes.runs.run import Run

FILE = "regions.npz"
_MARGIN = 0.25


@dataclass(frozen=True)
class Regions:
    """A grid over the plane of `HalfMoons`, and its test points.

    Args:
        x: coordinates of the columns, (columns,).
        y: coordinates of the rows, (rows,).
        certified: whether the prediction at a place is certified, (rows, columns).
        margin: second minus first logit of the nominal model, (rows, columns): zero on its decision boundary.
        points: test points, (points, 2).
        classes: their classes, 0 or 1, (points,).
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    certified: NDArray[np.bool_]
    margin: NDArray[np.float64]
    points: NDArray[np.float64]
    classes: NDArray[np.int64]

    @classmethod
    @torch.no_grad()
    def of(cls, run: Run, resolution: int) -> "Regions":
        """Certify the places of a grid.

        Args:
            run: a training on `HalfMoons`.
            resolution: places per side.
        """
        points, classes = run.datamodule.points("test")
        low, high = points.min(dim=0).values - _MARGIN, points.max(dim=0).values + _MARGIN
        x, y = (torch.linspace(float(low[i]), float(high[i]), resolution, dtype=points.dtype) for i in (0, 1))
        vertical, horizontal = torch.meshgrid(y, x, indexing="ij")
        places = torch.stack([horizontal.flatten(), vertical.flatten()], dim=1)
        features = HalfMoons.polynomial_features(places).to(run.module.device)
        logits = run.module(features)
        certified, margin = run.model.certify(features).certified, logits[:, 1] - logits[:, 0]
        values = (x, y, certified.reshape(len(y), len(x)), margin.reshape(len(y), len(x)), points, classes)
        return cls(*(value.cpu().numpy() for value in values))

    def save(self, path: Path) -> Path:
        """Write a compressed NumPy archive."""
        np.savez_compressed(path, **asdict(self))
        return path

    @classmethod
    def load(cls, path: Path) -> "Regions":
        """Read what `save` wrote."""
        with np.load(path) as file:
            return cls(**file)


def record_regions(run: Run, resolution: int = 200) -> Path:
    """Write ``regions.npz`` to the folder of a training on `HalfMoons`.

    Args:
        run: the training.
        resolution: places per side of the grid.
    """
    return Regions.of(run, resolution).save(run.output_dir / FILE)
