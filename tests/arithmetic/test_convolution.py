"""Convolutions of intervals by native kernels and by patches agree, with each other and with torch."""

import pytest
import torch
from torch.nn import functional as F

from agt_lightning.arithmetic import convolution
from agt_lightning.arithmetic.convolution import Windows, ball_convolve, chunks_of, convolve, convolve_adjoint
from agt_lightning.gradients import PatchProduct
from agt_lightning.interval import Interval, LpBall
from tests.gradients.oracles import WINDOWS, box

ROUNDING = 1e-12
"""Sums of a few products of numbers of size one, in float64."""

NATIVE = [
    ("point", "point"),
    ("nonnegative point", "nonnegative"),
    ("point", "signed"),
    ("signed", "nonnegative point"),
    ("nonnegative", "signed"),
    ("nonnegative", "nonnegative"),
    ("signed", "nonnegative"),
]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


def factors(windows, kinds, generator):
    """Image, values at the positions, and weight."""
    shape, channels = WINDOWS[windows]
    image = box((4, channels, *shape.image), generator, kinds[0])
    values = box((4, 6, *shape.positions), generator, kinds[0])
    return shape, image, values, box((6, channels // shape.groups, *shape.kernel), generator, kinds[1])


def require_same(a, b):
    assert a.shape == b.shape
    assert float((a.lower - b.lower).abs().max()) <= ROUNDING
    assert float((a.upper - b.upper).abs().max()) <= ROUNDING


@pytest.mark.parametrize("kinds", NATIVE, ids=" x ".join)
@pytest.mark.parametrize("windows", WINDOWS)
def test_native_kernels_and_patches_agree(windows, kinds, generator, monkeypatch):
    shape, image, values, weight = factors(windows, kinds, generator)
    native = convolve(image, weight, shape), convolve_adjoint(values, weight, shape)
    monkeypatch.setattr(convolution, "has_exact_kernels", lambda tensor: False)
    require_same(native[0], convolve(image, weight, shape))
    require_same(native[1], convolve_adjoint(values, weight, shape))


@pytest.mark.parametrize("windows", WINDOWS)
def test_chunks_of_samples_change_nothing(windows, generator, monkeypatch):
    shape, image, values, weight = factors(windows, ("signed", "signed"), generator)
    gradient = PatchProduct(values, image, shape)
    whole = convolve(image, weight, shape), convolve_adjoint(values, weight, shape), gradient.block(0, gradient.row)
    monkeypatch.setattr(convolution, "PATCH_BUDGET", 1)
    require_same(whole[0], convolve(image, weight, shape))
    require_same(whole[1], convolve_adjoint(values, weight, shape))
    require_same(whole[2], gradient.block(0, gradient.row))


@pytest.mark.parametrize("windows", WINDOWS)
def test_fold_is_the_adjoint_of_patches(windows, generator):
    shape, channels = WINDOWS[windows]
    image = torch.randn(4, channels, *shape.image, generator=generator, dtype=torch.float64)
    patches = shape.patches(image)
    columns = torch.randn(patches.shape, generator=generator, dtype=torch.float64)
    assert float((patches * columns).sum() - (image * shape.fold(columns)).sum()) == pytest.approx(0, abs=ROUNDING)


def test_patches_are_those_of_torch(generator):
    image = torch.randn(2, 3, 6, 5, generator=generator)
    windows = Windows((2, 3), (2, 1), (1, 2), (1, 2), (6, 5), (4, 5))
    expected = F.unfold(image, (2, 3), dilation=(1, 2), padding=(1, 2), stride=(2, 1)).transpose(1, 2)
    assert torch.equal(windows.patches(image), expected)


def test_a_frozen_convolution_costs_one_native_one(generator, monkeypatch):
    calls = []
    native = torch.convolution
    monkeypatch.setattr(convolution.torch, "convolution", lambda *a: calls.append(a) or native(*a))
    shape, image, _, weight = factors("two axes", ("point", "point"), generator)
    assert convolve(image, weight, shape).is_point
    assert len(calls) == 1


def test_a_sample_larger_than_the_budget_still_gets_its_turn():
    assert [chunk.stop - chunk.start for chunk in chunks_of(3, 2**40)] == [1, 1, 1]


def test_sums_of_nonnegative_products_are_nonnegative(generator):
    shape, image, values, weight = factors("one axis", ("nonnegative", "nonnegative"), generator)
    assert convolve(image, weight, shape).nonnegative
    assert convolve_adjoint(values, weight, shape).nonnegative
    assert not convolve(image, Interval(-weight.upper, weight.upper), shape).nonnegative


def worst_perturbation(kernel, scale, p):
    """The u of unit norm that moves one result most: aligned with ``kernel · scale``."""
    slope = kernel * scale
    if p == 2:
        return slope / slope.norm()
    if p == 1:
        return torch.sign(slope) * (slope.abs() == slope.abs().max())
    return torch.sign(slope)


@pytest.mark.parametrize("sizes", [(1e-163, 1e-163), (1e-180, 1e-10), (0.0, 0.0)], ids=str)
def test_balls_whose_squares_underflow_move_what_they_reach(sizes):
    windows = Windows((2,), (1,), (1,), (0,), (2,), (1,))
    ball = LpBall(torch.zeros(1, 1, 2).double(), torch.tensor([sizes], dtype=torch.float64), 2.0)
    weight = torch.tensor([[[3.0, -4.0]], [[1e150, 1e-10]]], dtype=torch.float64)
    reached = ball_convolve(ball, Interval.point(weight), windows).upper[0, :, 0]
    needed = torch.linalg.vector_norm(weight[:, 0] * ball.scale / 1e-100, dim=1) * 1e-100
    assert bool((reached >= (1 - 1e-12) * needed).all())
    assert bool((reached <= 2 * needed).all())


@pytest.mark.parametrize("p", [1, 2, float("inf")])
@pytest.mark.parametrize("windows", WINDOWS)
def test_ball_bounds_contain_the_worst_perturbation_and_meet_it_for_a_point(windows, p, generator):
    shape, image, _, weight = factors(windows, ("point", "signed"), generator)
    scale = torch.rand(image.lower[0].shape, generator=generator, dtype=torch.float64)
    ball = LpBall(image.lower, scale, p)
    share = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
    kernel = weight.lower + share * (weight.upper - weight.lower)
    enclosure, exact = ball_convolve(ball, weight, shape), ball_convolve(ball, Interval.point(kernel), shape)
    single = [torch.zeros(1, 6, *shape.positions, dtype=torch.float64) for _ in range(exact.lower[0].numel())]
    for number, seed in enumerate(single):
        seed.view(-1)[number] = 1.0
        slope = convolve_adjoint(Interval.point(seed), Interval.point(kernel), shape).lower
        moved = image.lower + scale * worst_perturbation(slope, scale, p)
        value = convolve(Interval.point(moved), Interval.point(kernel), shape).lower.flatten(1)[:, number]
        assert bool((value <= enclosure.upper.flatten(1)[:, number] + ROUNDING).all())
        assert float((value - exact.upper.flatten(1)[:, number]).abs().max()) <= ROUNDING
