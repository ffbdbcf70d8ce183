"""Histograms of oriented gradients of deskewed images: a fixed map, which no data set and no label has a part in."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from recipes.data.features import FeatureMap, unit_rows

_PART = 512
"""Images at once, of which all orientations are in memory together."""

_BEFORE, _AFTER = 0.8, 1.7
"""Standard deviations in pixels of the blur of images, and of that of gradients over places."""

_TRUNCATED = 4.0
"""Standard deviations at which the Gaussian kernels end."""


@dataclass(frozen=True)
class DeskewedHOG:
    """Strengths of edges by direction and place, of images that stand upright in the middle; unit norm.

    Each image is sheared by ``min(max(v_xy / v_yy, -1), 1)`` about its centroid, which moves to the center (bilinear,
    zeros outside), blurred, and differentiated by central differences. The root of the gradient's magnitude is shared
    among signed ``orientations`` θ by ``max(0, cos(angle - θ))⁴``, blurred again, and read at every ``stride``-th
    pixel.

    Args:
        orientations: number of directions.
        stride: distance of places that are read, in pixels.

    Example:
        >>> DeskewedHOG().fit(torch.zeros(0)).transform(torch.rand(2, 28, 28)).shape
        torch.Size([2, 1200])
    """

    orientations: int = 12
    stride: int = 3

    def __post_init__(self) -> None:
        if self.orientations < 1 or self.stride < 1:
            raise ValueError(
                "Expected at least one of `orientations` and a `stride` of at least 1, but got "
                f"{self.orientations} and {self.stride}."
            )

    def fit(self, inputs: Tensor) -> "OrientedGradients":
        """Return the map; the inputs have no part in it."""
        return OrientedGradients(self.orientations, self.stride)


@dataclass(frozen=True)
class OrientedGradients(FeatureMap):
    """The map of `DeskewedHOG`, for images ``(samples, height, width)``.

    Args:
        orientations: number of directions.
        stride: distance of places.
    """

    orientations: int
    stride: int

    @override
    def _transform(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise ValueError(f"Expected images of shape (samples, height, width), but got {tuple(x.shape)}.")
        return torch.cat([self._histograms(deskewed(part)) for part in x.split(_PART)])

    def _histograms(self, images: Tensor) -> Tensor:
        height, width = images.shape[1:]
        blurred = _kernel(height, _BEFORE, 1, images) @ images @ _kernel(width, _BEFORE, 1, images).T
        padded = F.pad(blurred, (1, 1, 1, 1))
        down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
        right = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
        strength = torch.hypot(down, right)
        angles = torch.arange(self.orientations, dtype=images.dtype) * (2 * math.pi / self.orientations)
        cosine, sine = (wave.to(images.device)[:, None, None] for wave in (angles.cos(), angles.sin()))
        along = (right[:, None] * cosine + down[:, None] * sine).clamp_(min=0)
        # max(0, cos)⁴ √|g| = max(0, ⟨g, e⟩)⁴ / |g|^3.5, and zero where the gradient is.
        shares = along.square_().square_() / strength.pow(3.5).clamp(min=torch.finfo(images.dtype).tiny)[:, None]
        rows, columns = (_kernel(size, _AFTER, self.stride, images) for size in (height, width))
        return unit_rows((rows @ shares @ columns.T).flatten(1))


def deskewed(images: Tensor) -> Tensor:
    """Return images whose centroid is in the middle, and in which x and y are uncorrelated if the shear is at most one.

    Args:
        images: ``(samples, height, width)``, not negative, in floating point.

    Example:
        >>> slanted = torch.eye(5, dtype=torch.float64)[None]
        >>> deskewed(slanted)[0].sum(dim=0)
        tensor([0., 0., 5., 0., 0.], dtype=torch.float64)
    """
    height, width = images.shape[1:]
    y, x = (torch.arange(size, dtype=images.dtype, device=images.device) - (size - 1) / 2 for size in (height, width))
    mass = images.sum(dim=(1, 2)).clamp(min=torch.finfo(images.dtype).tiny)
    mean_y, mean_x = images.sum(dim=2) @ y / mass, images.sum(dim=1) @ x / mass
    off_y, off_x = y - mean_y[:, None], x - mean_x[:, None]
    variance = (images.sum(dim=2) * off_y.square()).sum(dim=1)
    covariance = torch.einsum("nyx,ny,nx->n", images, off_y, off_x)
    shear = (covariance / variance.clamp(min=torch.finfo(images.dtype).tiny)).clamp(-1, 1)
    source_x = x + shear[:, None, None] * y[:, None] + mean_x[:, None, None]
    source_y = (y[:, None] + mean_y[:, None, None]).expand_as(source_x)
    grid = torch.stack([source_x / max((width - 1) / 2, 0.5), source_y / max((height - 1) / 2, 0.5)], dim=3)
    return F.grid_sample(images[:, None], grid, align_corners=True)[:, 0]


def _kernel(size: int, deviation: float, stride: int, like: Tensor) -> Tensor:
    """Return the matrix of a Gaussian blur with zeros outside, read at every ``stride``-th place, (places, size)."""
    places = torch.arange(0, size, stride, dtype=like.dtype)
    distance = (places[:, None] - torch.arange(size, dtype=like.dtype)).abs()
    reach = int(_TRUNCATED * deviation + 0.5)
    total = torch.arange(-reach, reach + 1, dtype=like.dtype).div(deviation).square().div(-2).exp().sum()
    weights = distance.div(deviation).square().div(-2).exp() / total
    return weights.masked_fill(distance > reach, 0.0).to(like.device)
