"""Suprema over shares are never below the best of many shares, and close for smooth functions."""

import numpy as np
import pytest
import torch

from agt_lightning.domains.adjoint.curvature import third_derivative
from agt_lightning.domains.adjoint.one_hidden.shares import BINS, bin_edges, bins_of, largest_shared, switched
from agt_lightning.domains.adjoint.output_bounds import _largest_ramps
from agt_lightning.domains.losses import LogisticLoss, SoftmaxLoss


def shares_of(generator, units, radius, count=4000):
    """Random r with ``Σ r² <= R²``, some of them with few units."""
    weight = generator.exponential(size=(count, units)) * (generator.random((count, units)) < 0.6)
    total = np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
    return radius * np.sqrt(weight / total)


@pytest.mark.parametrize("radius", [0.0, 1e-3, 2.0])
def test_no_share_exceeds_the_supremum(radius):
    generator = np.random.default_rng(3)
    units, pairs = 4, 30
    unit, distance = generator.integers(0, units, pairs), radius * generator.random(pairs) ** 2
    step, slope = generator.random(pairs), 3 * generator.random(pairs)
    edges = bin_edges(radius)
    steps, ramps = np.zeros((units, BINS)), np.zeros((units, BINS))
    np.add.at(steps, (unit, bins_of(distance, edges)), step)
    np.add.at(ramps, (unit, bins_of(distance, edges)), slope)
    bound = largest_shared(switched(steps, ramps, edges)[None], edges)[0]
    shares = shares_of(generator, units, radius)[:, unit]
    reached = ((shares >= distance) * (step + slope * (shares - distance))).sum(axis=1)
    assert reached.max() <= bound * (1 + 1e-12)
    assert reached.max() >= 0.5 * bound


def test_no_share_exceeds_the_ramps_of_outputs():
    generator = np.random.default_rng(4)
    gain, distance = torch.from_numpy(generator.random((5, 6))), torch.from_numpy(generator.random((5, 6)) ** 2)
    bound = _largest_ramps(gain, distance, 0.8)
    shares = torch.from_numpy(shares_of(generator, 6, 0.8))
    reached = (gain[:, None] * (shares - distance[:, None]).clamp(min=0)).sum(dim=2).amax(dim=1)
    assert bool((reached <= bound * (1 + 1e-12)).all())
    assert bool((reached >= 0.7 * bound).all())
    assert not _largest_ramps(gain, distance, 0.0).any()
    torch.testing.assert_close(_largest_ramps(1e-200 * gain, distance, 0.8), 1e-200 * bound, rtol=1e-9, atol=0)


def test_third_derivatives_are_bounded():
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(400, 3, dtype=torch.float64, generator=generator)
    p = logits.softmax(dim=1)
    unit = torch.nn.functional.normalize(torch.randn(400, 3, dtype=torch.float64, generator=generator), dim=1)
    centered = unit - (p * unit).sum(dim=1, keepdim=True)
    variance = torch.linalg.eigvalsh(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])[:, -1]
    cumulant = (p * centered**3).sum(dim=1).abs()
    assert bool((cumulant <= third_derivative(SoftmaxLoss(1.0), variance)).all())
    sigmoid = logits[:, 0].sigmoid()
    slope = sigmoid * (1 - sigmoid)
    assert bool(((slope * (1 - 2 * sigmoid)).abs() <= third_derivative(LogisticLoss(1.0), slope)).all())
