"""Histograms of oriented gradients, against the same by SciPy, image by image."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from recipes.data.hog import DeskewedHOG, deskewed

TOLERANCE = 1e-9


def strokes(count=5, size=28, seed=0, steep=1.0):
    """Slanted strokes of different thickness, off the center; their shears go up to about 0.8 times ``steep``."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*(torch.arange(size, dtype=torch.float64),) * 2, indexing="ij")
    images = []
    for _ in range(count):
        row, column, slope, width = (torch.rand(4, generator=generator) * torch.tensor([6, 6, 1.6, 1.5])).tolist()
        distance = (x - 11 - column) - steep * (slope - 0.8) * (y - 11 - row)
        inside = (y > 5 + row) & (y < 18 + row)
        images.append(torch.exp(-distance.square() / (1 + width)) * inside)
    return torch.stack(images)


def by_scipy(image):
    """The features of one image, written once more."""
    size = len(image)
    y, x = np.mgrid[:size, :size]
    mass = image.sum()
    center_y, center_x = (image * y).sum() / mass, (image * x).sum() / mass
    variance = (image * (y - center_y) ** 2).sum()
    shear = np.clip((image * (y - center_y) * (x - center_x)).sum() / variance, -1, 1)
    middle = (size - 1) / 2
    places = [y - middle + center_y, x - middle + shear * (y - middle) + center_x]
    straight = map_coordinates(image, places, order=1, mode="grid-constant")
    blurred = np.pad(gaussian_filter(straight, 0.8, mode="constant"), 1)
    down, right = (blurred[2:, 1:-1] - blurred[:-2, 1:-1]) / 2, (blurred[1:-1, 2:] - blurred[1:-1, :-2]) / 2
    strength, angle = np.hypot(down, right), np.arctan2(down, right)
    found = []
    for turn in range(12):
        share = np.maximum(0, np.cos(angle - 2 * math.pi * turn / 12)) ** 4
        found.append(gaussian_filter(np.sqrt(strength) * share, 1.7, mode="constant")[::3, ::3])
    return np.stack(found).ravel() / np.linalg.norm(np.stack(found))


def features(images, **settings):
    return DeskewedHOG(**settings).fit(images).transform(images)


@pytest.mark.parametrize("steep", [1.0, 3.0])
def test_features_are_those_of_the_definition(steep):
    images = strokes(steep=steep)
    expected = np.stack([by_scipy(image) for image in images.numpy()])
    assert features(images).shape == (5, 1200)
    assert np.abs(features(images).numpy() - expected).max() < TOLERANCE


def test_another_blur_is_noticed():
    expected = np.stack([by_scipy(gaussian_filter(image, 0.3)) for image in strokes().numpy()])
    assert np.abs(features(strokes()).numpy() - expected).max() > 1000 * TOLERANCE


def test_a_shift_of_the_image_changes_nothing():
    images = strokes()
    assert torch.allclose(features(images.roll((2, -3), dims=(1, 2))), features(images), atol=1e-6)


def test_deskewed_images_stand_upright_in_the_middle():
    images = deskewed(strokes())
    place = torch.arange(28, dtype=torch.float64) - 13.5
    mass = images.sum(dim=(1, 2))
    for axis in (1, 2):
        assert ((images.sum(dim=3 - axis) @ place / mass).abs() < 0.05).all()
    covariance = torch.einsum("nyx,y,x->n", images, place, place) / mass
    assert (covariance.abs() < 0.2).all()
    before = strokes().sum(dim=0)
    assert float(before.sum()) == pytest.approx(float(images.sum()), rel=0.05)


def test_empty_images_are_zeros():
    assert torch.equal(features(torch.zeros(2, 28, 28)), torch.zeros(2, 1200, dtype=torch.float64))


def test_samples_do_not_meet():
    images = strokes()
    assert torch.allclose(features(images)[2:3], features(images[2:3]), atol=TOLERANCE)


def test_settings_count():
    assert features(strokes(), orientations=6, stride=7).shape == (5, 6 * 4 * 4)
    with pytest.raises(ValueError, match="`stride` of at least 1"):
        DeskewedHOG(stride=0)
    with pytest.raises(ValueError, match=r"images of shape \(samples, height, width\), but got \(2, 9\)"):
        features(torch.zeros(2, 9))
