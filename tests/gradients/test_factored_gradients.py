"""Every factored gradient equals the full (batch, parameter) bounds."""

import pytest
import torch

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.gradients import Elementwise, OuterProduct, Stacked, Summed, stack
from agt_lightning.interval import Interval
from tests.gradients.oracles import Case, cases, check_blocks, check_square_sums, check_total

CASES = cases()
HAVE_NO_TOTAL = {
    case.name
    for case in CASES
    if "signed x signed" in case.name  # only there do both factors straddle zero
}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(9)


def weights_for(case: Case, generator: torch.Generator) -> torch.Tensor:
    weights = torch.rand(case.gradient.samples, generator=generator, dtype=torch.float64)
    weights[0] = 0.0
    return weights


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_aligned_block_equals_the_dense_bounds(case):
    check_blocks(case, lambda gradient, start, stop: gradient.block(start, stop))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_total_equals_the_weighted_sum_of_dense_bounds(case, generator):
    has_total = check_total(case, lambda gradient, weights: gradient.total(weights), weights_for(case, generator))
    assert has_total == (case.name not in HAVE_NO_TOTAL)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_square_sums_equal_those_of_the_dense_box(case):
    check_square_sums(case, lambda gradient: gradient.square_sums())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scale_is_at_least_the_weighted_magnitude(case, generator):
    weights = weights_for(case, generator)
    largest = case.dense.magnitude.flatten(1).amax(dim=1) @ weights
    # One-sided: a scale too small would make the self-check strict beyond rounding.
    assert case.gradient.scale(weights) >= float(largest) * (1 - 1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sizes_are_those_of_the_dense_bounds(case):
    assert (case.gradient.samples, *case.gradient.shape) == tuple(case.dense.shape)
    assert case.gradient.elements == case.dense[0].lower.numel()


def test_blocks_of_points_are_points():
    gradient = OuterProduct(Interval.point(torch.ones(2, 1, 3)), Interval.point(torch.ones(2, 1, 2)))
    assert gradient.block(0, 6).is_point
    assert Stacked([gradient, gradient]).block(0, 2).is_point
    assert Elementwise(Interval.point(torch.ones(2, 3))).block(1, 3).is_point


def test_stack_of_one_part_is_that_part():
    part = Elementwise(Interval.point(torch.ones(2, 3)))
    assert stack([part]) is part
    assert stack([part, part]).samples == 4


def test_gradients_of_float32_factors_stay_float32():
    gradient = OuterProduct(Interval(torch.zeros(2, 1, 3), torch.ones(2, 1, 3)), Interval.point(torch.ones(2, 1, 2)))
    assert gradient.block(0, 6).dtype == torch.float32
    assert gradient.total(torch.ones(2)).dtype == torch.float32


def test_bounds_that_rounding_crossed_are_put_in_order():
    crossed = Interval.trusted(torch.tensor([[1.0 + 2**-20, 1.0]]), torch.tensor([[1.0, 1.5]]))
    weights = torch.ones(1)
    ones = Interval(torch.ones(1, 1, 2), torch.ones(1, 1, 2), nonnegative=True)
    for gradient in (
        Elementwise(crossed),
        OuterProduct(Interval.trusted(crossed.lower[None], crossed.upper[None]), ones),
    ):
        total = gradient.total(weights)
        assert bool((total.lower <= total.upper).all())
        assert bool((gradient.block(0, 2).lower <= gradient.block(0, 2).upper).all())


def test_a_stack_rounds_like_one_gradient():
    """Parts are consecutive samples, so that a sum over them is a sum over samples, in one of its orders."""
    part = OuterProduct(Interval.point(torch.ones(3, 2, 2).double()), Interval.point(torch.ones(3, 2, 4).double()))
    several, whole = Stacked([part, part, part]), stack([part, part, part])
    single = Arithmetic(torch.float32, torch.float64)
    wide, expected = (gradient.rounded(single, 9).block(0, 8) for gradient in (several, whole))
    assert several.positions == whole.positions == 2
    assert torch.equal(wide.lower, expected.lower)
    assert torch.equal(wide.upper, expected.upper)


def test_a_sum_of_uses_covers_the_rounding_of_that_sum():
    use = torch.full((1, 1), 0.1)
    uses = Summed([Elementwise(Interval.point(use.double()))] * 4096).rounded(
        Arithmetic(torch.float32, torch.float64), 1
    )
    run = use.clone()
    for _ in range(4095):
        run += use
    bounds = uses.rounded(Arithmetic(torch.float32, torch.float64), 1).block(0, 1)
    assert abs(float(run) - 409.6) > 1e-3
    assert bounds.lower.item() <= run.item() <= bounds.upper.item()
