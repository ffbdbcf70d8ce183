"""Eigenvectors of a walk among neighbors, against dense matrices filled one by one."""

import math
import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from agt_lightning.domains.influence import SmootherInfluence
from agt_lightning.domains.influence.certified_flips import certified_flips
from agt_lightning.domains.influence.label_sets import LabelFlips
from recipes.data.features import PCA, UnitNorm
from recipes.data.hog import DeskewedHOG
from recipes.data.mnist import SHA256, find_file, read_digits
from recipes.data.spectral import SpectralEmbedding

TOLERANCE = 1e-8
CHOICE = SpectralEmbedding(PCA(6), components=4, neighbors=8, pca=3)


def points(count=60, seed=0):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def projected(inputs, others):
    """Principal components of others, by those of every fifth of the inputs."""
    base = PCA(6).fit(inputs)
    return PCA(3).fit(base.transform(inputs[::5])).transform(base.transform(others))


def neighbors(query, data, count, without=None):
    """Pairs of distance and number, the nearest first."""
    pairs = [(math.dist(query.tolist(), other.tolist()), j) for j, other in enumerate(data) if j != without]
    return sorted(pairs)[:count]


def dense(inputs):
    """Leading eigenvalues and eigenvectors of D⁻¹ W, and the scales."""
    data = projected(inputs, inputs)
    near = [neighbors(row, data, 8, without=i) for i, row in enumerate(data)]
    scales = [pairs[6][0] for pairs in near]
    weights = torch.zeros(len(data), len(data), dtype=torch.float64)
    for i, pairs in enumerate(near):
        for distance, j in pairs:
            weight = math.exp(-(distance**2) / (scales[i] * scales[j]))
            weights[i, j] = max(float(weights[i, j]), weight)
            weights[j, i] = max(float(weights[j, i]), weight)
    walk = weights / weights.sum(dim=1, keepdim=True)
    values, vectors = torch.linalg.eig(walk)
    order = values.real.argsort(descending=True)[:4]
    return values.real[order], vectors.real[:, order], weights.sum(dim=1), scales


def test_features_of_training_inputs_are_eigenvectors():
    fitted = CHOICE.fit(points())
    values, vectors, degrees, _ = dense(points())
    assert torch.allclose(fitted.values, values, atol=TOLERANCE)
    rows = fitted.of_training(points())
    expected = vectors / (degrees[:, None] * vectors.square()).sum(dim=0).sqrt()
    for found, other in zip(rows.T, expected.T, strict=True):
        assert min(float((found - sign * other).abs().max()) for sign in (1, -1)) < 1e-6
        assert found[found.abs().argmax()] > 0
    assert float(values[0]) == pytest.approx(1)
    assert torch.allclose(rows[:, 0], rows[0, 0].expand(60))


def test_features_of_other_inputs_are_means_over_their_neighbors():
    fitted, queries = CHOICE.fit(points()), points(7, seed=1)
    _, _, _, scales = dense(points())
    rows = fitted.of_training(points())
    for query, found in zip(projected(points(), queries), fitted.transform(queries), strict=True):
        pairs = neighbors(query, projected(points(), points()), 8)
        scale = pairs[6][0]
        weights = {j: math.exp(-(distance**2) / (scale * scales[j])) for distance, j in pairs}
        mean = sum(weight * rows[j] for j, weight in weights.items()) / sum(weights.values())
        assert torch.allclose(found, mean / fitted.values, atol=1e-6)


def test_the_constant_stays_constant():
    fitted = CHOICE.fit(points())
    column = fitted.transform(points(20, seed=2))[:, 0]
    assert torch.allclose(column, fitted.of_training(points())[0, 0].expand(20))


def test_far_inputs_have_finite_features():
    """All weights would underflow; their ratios do not."""
    fitted = CHOICE.fit(points())
    found = fitted.transform(1e6 * points(5, seed=3))
    assert found.isfinite().all()
    assert (found.abs() <= fitted.of_training(points()).abs().amax(dim=0) / fitted.values + TOLERANCE).all()


def test_clusters_have_directions_of_their_own():
    centers = 3 * torch.eye(6, dtype=torch.float64)[:3].repeat_interleave(30, dim=0)
    inputs = centers + 0.5 * points(90, seed=4)
    rows = UnitNorm(SpectralEmbedding(PCA(6), components=3, neighbors=10, pca=4)).fit(inputs).of_training(inputs)
    likeness = rows @ rows.T
    same = torch.arange(90)[:, None] // 30 == torch.arange(90) // 30
    assert float(likeness[same].mean()) > float(likeness[~same].mean()) + 0.5


def test_features_are_the_same_in_every_fit_and_frozen():
    first, second = CHOICE.fit(points()), CHOICE.fit(points())
    assert torch.equal(first.of_training(points()), second.of_training(points()))
    assert torch.equal(first.transform(points(5, seed=1)), second.transform(points(5, seed=1)))
    with pytest.raises(FrozenInstanceError):
        first.vectors = torch.zeros(1)


def test_unit_norm_scales_both_kinds_of_features():
    fitted = UnitNorm(CHOICE).fit(points())
    base = CHOICE.fit(points())
    for found, raw in (
        (fitted.of_training(points()), base.of_training(points())),
        (fitted.transform(points(5, seed=1)), base.transform(points(5, seed=1))),
    ):
        assert torch.allclose(found.norm(dim=1), torch.ones(len(found), dtype=torch.float64))
        assert torch.allclose(found * raw.norm(dim=1, keepdim=True), raw)
    assert torch.equal(
        UnitNorm(PCA(6)).fit(points()).of_training(points()), UnitNorm(PCA(6)).fit(points()).transform(points())
    )


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="at least 7 `neighbors`, but got 4 and 6"):
        SpectralEmbedding(PCA(6), components=4, neighbors=6)
    with pytest.raises(ValueError, match="more than 8 training inputs, but got 8"):
        CHOICE.fit(points(8))
    with pytest.raises(ValueError, match="the 60 training inputs, but got 59"):
        CHOICE.fit(points()).of_training(points()[:59])


@pytest.mark.slow
def test_class_sums_of_real_digits_are_right_and_the_shift_doubles_their_flips():
    """The first 3 000 training and 500 test digits of MNIST."""
    root = Path(os.environ.get("AGT_DATA_ROOT") or Path(__file__).parents[4] / "shared" / "data")
    if any(find_file(root, name) is None for name in SHA256):
        pytest.skip("no real data; set AGT_DATA_ROOT")
    (images, labels), (others, classes) = read_digits(root, "train"), read_digits(root, "test")
    images, labels, others, classes = images[:3000], labels[:3000], others[:500], classes[:500]
    fitted = UnitNorm(SpectralEmbedding(DeskewedHOG())).fit(images)
    targets, medians = F.one_hot(labels, 10), []
    for shift in (0.0, "half"):
        model = SmootherInfluence.class_sums(fitted.of_training(images), targets, shift)
        queries = fitted.transform(others)
        assert float((model.outputs(queries).argmax(dim=1) == classes).double().mean()) > 0.92
        medians.append(float(certified_flips(model, queries, LabelFlips.of_targets(model.targets)).double().median()))
    assert medians[0] > 0.8 * 3000 / 20 / 2
    assert medians[1] > 1.5 * medians[0]
