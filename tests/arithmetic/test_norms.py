import math

import pytest
import torch

from agt_lightning.adversaries import BoundedAdversary
from agt_lightning.adversaries.features import perturbed
from agt_lightning.arithmetic import ball_product, dual_norm, euclidean_norm, product
from agt_lightning.interval import Interval

ROUNDING = 1e-12
"""One-sided; sums of three products of numbers near one."""


def surface(p, count, size, generator):
    """Points on the unit sphere of ℓp."""
    u = torch.randn(count, size, dtype=torch.float64, generator=generator)
    return u / torch.linalg.vector_norm(u, ord=p, dim=1, keepdim=True)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_dual_norm_is_the_largest_product(p):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    norms = dual_norm(rows, p)
    u = surface(p, 200_000, 3, generator)
    reached = (u @ rows.T).amax(dim=0)
    assert bool((reached <= norms + ROUNDING).all())
    assert bool((reached >= 0.98 * norms).all())


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("radius", [0.0, 0.02])
def test_ball_product_contains_every_product(p, radius):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    center = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    weight = Interval(center - radius, center + radius)
    scale = torch.tensor([0.5, 0.1, 0.0], dtype=torch.float64)
    features = perturbed(x, scale, p)
    bounds = ball_product(features.ball, weight)
    for _ in range(300):
        w = center + radius * (2 * torch.rand(2, 3, dtype=torch.float64, generator=generator) - 1).sign()
        moved = x + scale * surface(p, 5, 3, generator)
        assert bounds.contains(moved @ w.T, ROUNDING)
    box = product(features, weight.mT)
    assert bool((box.intersect(bounds).width <= box.width).all())
    assert bool((bounds.width < box.width).any())


def test_ball_product_is_exact_for_a_fixed_weight():
    x, row = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    bounds = ball_product(perturbed(x, 0.1, 2).ball, Interval.point(row))
    assert bounds.upper.item() == pytest.approx(0.5)


def test_features_stay_in_their_range():
    pixels = perturbed(torch.tensor([[0.0, 0.95]]), 0.1, bounds=(0, 1))
    assert pixels.nonnegative
    assert pixels.lower.tolist() == [[0.0, pytest.approx(0.85)]]
    assert pixels.upper.tolist() == [[pytest.approx(0.1), 1.0]]


def test_features_outside_their_range_are_refused():
    with pytest.raises(ValueError, match=r"Expected features within `bounds=\(0.0, 1.0\)`, but got values from -0.5"):
        BoundedAdversary(n=1, epsilon=0.1, bounds=(0, 1)).poisoned_features(Interval.point(torch.tensor([[-0.5]])))


def test_radius_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"Expected `epsilon` to broadcast to the shape of one sample, \(3,\)"):
        perturbed(torch.zeros(2, 3), torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_euclidean_norm_at_every_size(dtype):
    """Against Python's, which scales; of zero rows, along each axis, and of all values."""
    exponents = torch.linspace(math.log10(torch.finfo(dtype).tiny), 18, 60).double()
    values = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).double()
    values = (values * 10 ** exponents[:, None]).to(dtype)
    values[::7] = 0
    tolerance = 8 * torch.finfo(dtype).eps
    for dim in (0, 1, -1):
        rows = values if dim else values.mT
        expected = torch.tensor([math.hypot(*row) for row in rows.tolist()], dtype=torch.float64)
        torch.testing.assert_close(euclidean_norm(values, dim=dim).double(), expected, rtol=tolerance, atol=0.0)
    for row in values:
        assert float(euclidean_norm(row)) == pytest.approx(math.hypot(*row.tolist()), rel=tolerance, abs=0.0)
    assert euclidean_norm(values[:0], dim=1).shape == (0,)
    assert euclidean_norm(values[:, :0], dim=1).tolist() == [0.0] * 60
    assert euclidean_norm(torch.tensor([1e-30, math.nan], dtype=dtype)).isnan()
