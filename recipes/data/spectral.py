"""Eigenvectors of a random walk among the training inputs: clusters that are visible without labels."""

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import eigsh
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from typing_extensions import override

from recipes.data.features import PCA, FeatureMap, Features

_SCALE = 7
"""The distance to so manieth a neighbor is the scale of a point."""

_PCA_EVERY = 5
"""Principal components are those of every fifth training input."""


@dataclass(frozen=True)
class SpectralEmbedding:
    """The leading eigenvectors of a random walk on the nearest neighbors of the training inputs.

    From x to one of its ``neighbors`` nearest y, or from y to x, the walk goes with weight ``exp(-d² / (s_x s_y))``, d
    their distance in principal components of ``base`` and s the distance to the 7th neighbor. The features of a
    training input are its entries in the eigenvectors v of the largest eigenvalues λ, one of which is constant; those
    of another input are the weighted mean of v over its own nearest training inputs, divided by λ (Nystrom).

    Args:
        base: features before the principal components.
        components: number of eigenvectors.
        neighbors: number of neighbors, at least 7.
        pca: number of principal components.

    Reference:
        Zelnik-Manor and Perona, "Self-tuning spectral clustering", NeurIPS 2004, for the weights.
    """

    base: Features
    components: int = 10
    neighbors: int = 10
    pca: int = 60

    def __post_init__(self) -> None:
        if self.components < 1 or self.neighbors < _SCALE:
            raise ValueError(
                f"Expected at least one of `components` and at least {_SCALE} `neighbors`, but got {self.components} "
                f"and {self.neighbors}."
            )

    @torch.no_grad()
    def fit(self, inputs: Tensor) -> "SpectralMap":
        """Return the embedding of these training inputs and its extension to others.

        Raises:
            ValueError: if there are too few inputs, or an eigenvalue is not positive.
        """
        if len(inputs) <= max(self.components, self.neighbors):
            raise ValueError(
                f"Expected more than {max(self.components, self.neighbors)} training inputs, but got {len(inputs)}."
            )
        base = self.base.fit(inputs)
        projection = PCA(self.pca).fit(base.transform(inputs[::_PCA_EVERY]))
        points = _projected(base, projection, inputs)
        distances, nearest = _nearest(points, points, self.neighbors, itself=False)
        scales = _scales(distances)
        weights = _exponents(distances, nearest, scales, scales).exp()
        values, vectors = _walk(weights, nearest, self.components)
        if values[-1] <= 0:
            raise ValueError(
                f"Expected positive eigenvalues, but number {self.components} is {values[-1]:.3g}. Use fewer."
            )
        return SpectralMap(base, projection, self.neighbors, points, scales, values, vectors)


@dataclass(frozen=True)
class SpectralMap(FeatureMap):
    """Eigenvectors over the training inputs, and their extension to others.

    Args:
        base: features before the principal components.
        projection: onto principal components.
        neighbors: number of neighbors.
        points: training inputs in principal components, ``(inputs, pca)``.
        scales: s of each, ``(inputs,)``.
        values: eigenvalues, falling, ``(components,)``.
        vectors: eigenvectors, ``(inputs, components)``.
    """

    base: FeatureMap
    projection: FeatureMap
    neighbors: int
    points: Tensor = field(repr=False)
    scales: Tensor = field(repr=False)
    values: Tensor = field(repr=False)
    vectors: Tensor = field(repr=False)

    @override
    def of_training(self, inputs: Tensor) -> Tensor:
        if len(inputs) != len(self.vectors):
            raise ValueError(f"Expected the {len(self.vectors)} training inputs, but got {len(inputs)}.")
        return self.vectors.to(inputs.device)

    @override
    def _transform(self, x: Tensor) -> Tensor:
        points = _projected(self.base, self.projection, x)
        distances, nearest = _nearest(points, self.points, self.neighbors, itself=True)
        exponents = _exponents(distances, nearest, _scales(distances), self.scales)
        shares = exponents.softmax(dim=1)  # far away all weights underflow, not their ratios
        mean = torch.einsum("qk,qkc->qc", shares, self.vectors[nearest])
        return (mean / self.values).to(x.device)


def _projected(base: FeatureMap, projection: FeatureMap, inputs: Tensor) -> Tensor:
    return torch.cat([projection.transform(base.transform(chunk)) for chunk in inputs.split(4096)]).cpu()


def _nearest(queries: Tensor, points: Tensor, count: int, *, itself: bool) -> tuple[Tensor, Tensor]:
    """Return distances to the nearest points, rising, and their numbers, ``(queries, count)``; exact.

    Args:
        queries: in principal components.
        points: likewise.
        count: number of neighbors.
        itself: whether a query, which is one of the points otherwise, can be its own neighbor.
    """
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(points.numpy())
    distances, nearest = search.kneighbors(queries.numpy() if itself else None)
    return torch.from_numpy(distances), torch.from_numpy(nearest)


def _scales(distances: Tensor) -> Tensor:
    return distances[:, _SCALE - 1].clamp(min=torch.finfo(distances.dtype).tiny ** 0.25)


def _exponents(distances: Tensor, nearest: Tensor, own: Tensor, of_points: Tensor) -> Tensor:
    """Return ``-d² / (s_x s_y)`` for each query and neighbor."""
    return -distances.square() / (own[:, None] * of_points[nearest])


def _walk(weights: Tensor, nearest: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues of the walk, and its eigenvectors v, with ``Σ_i d_i v_i² = 1``.

    The entry of largest magnitude of each is positive. They come from the symmetric matrix D^(-1/2) W D^(-1/2).
    """
    count, neighbors = nearest.shape
    starts = np.arange(0, count * neighbors + 1, neighbors)
    directed = csr_matrix((weights.flatten().numpy(), nearest.flatten().numpy(), starts), shape=(count, count))
    graph = directed.maximum(directed.T)
    root = np.sqrt(np.asarray(graph.sum(axis=1)).ravel())
    symmetric = diags(1 / root) @ graph @ diags(1 / root)
    values, vectors = eigsh(symmetric, k=components, which="LA", v0=root / np.linalg.norm(root))
    order = np.argsort(values)[::-1]
    walked = torch.from_numpy(vectors[:, order] / root[:, None])
    largest = walked.gather(0, walked.abs().argmax(dim=0, keepdim=True))
    return torch.from_numpy(values[order].copy()), walked * largest.sign()
