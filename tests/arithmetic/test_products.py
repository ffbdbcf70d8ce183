import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agt_lightning.arithmetic import multiply, product
from agt_lightning.interval import Interval
from tests.arithmetic.oracles import boxes, check_product, corner_products, require_equal, slow_product

MOST_EXAMPLES = 60


@st.composite
def factors(draw, scale=1.0):
    rows, columns, inner = (draw(st.integers(1, size)) for size in (4, 4, 6))
    return draw(boxes(rows, inner, scale=scale)), draw(boxes(inner, columns, scale=1 / scale))


@settings(max_examples=MOST_EXAMPLES, deadline=None, derandomize=True)
@given(factors())
def test_product_equals_the_sum_of_exact_element_products(pair):
    check_product(product, *pair)


@settings(max_examples=MOST_EXAMPLES, deadline=None, derandomize=True)
@given(factors(scale=1e150))
def test_product_is_exact_for_extreme_magnitudes(pair):
    check_product(product, *pair)


@settings(max_examples=MOST_EXAMPLES, deadline=None, derandomize=True)
@given(factors())
def test_product_keeps_facts_that_are_true(pair):
    result = product(*pair)
    if result.nonnegative:
        assert bool((result.lower >= 0).all())
    assert result.is_point == (pair[0].is_point and pair[1].is_point)


@settings(max_examples=MOST_EXAMPLES, deadline=None, derandomize=True)
@given(factors())
def test_product_is_exact_in_float32(pair):
    a, b = (Interval.trusted(box.lower.float(), box.upper.float(), nonnegative=box.nonnegative) for box in pair)
    wide_a, wide_b = (Interval(box.lower.double(), box.upper.double()) for box in (a, b))
    result, exact = product(a, b), slow_product(wide_a, wide_b)
    rounded = Interval.trusted(exact.lower.float(), exact.upper.float())
    require_equal("product in float32", result, rounded, a.magnitude @ b.magnitude)


@pytest.mark.parametrize("columns", [1, 3], ids=["every column straddles", "some columns straddle"])
def test_product_takes_the_larger_product_where_both_straddle(columns):
    a = Interval(torch.tensor([[-2.0, 1.0]]), torch.tensor([[3.0, 1.0]]))
    b = Interval(torch.tensor([[-5.0, 0.0]] + [[1.0, 0.0]] * (columns - 1)), torch.tensor([[4.0, 0.0]] * columns))
    result = product(a, b.mT)
    assert (result.lower[0, 0].item(), result.upper[0, 0].item()) == (-15.0, 12.0)


def test_product_sees_every_combination_of_signs():
    # One inner index per pair of sign classes: below, at, around and above zero.
    lower = torch.tensor([-3.0, -1.0, 0.0, -2.0, 1.0])
    upper = torch.tensor([-1.0, 0.0, 0.0, 4.0, 2.0])
    first, second = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    a = Interval(lower[first.flatten()][:, None], upper[first.flatten()][:, None])
    b = Interval(lower[second.flatten()][:, None], upper[second.flatten()][:, None]).mT
    result, exact = product(a, b), slow_product(a, b)
    assert torch.equal(result.lower, exact.lower)
    assert torch.equal(result.upper, exact.upper)


@settings(max_examples=MOST_EXAMPLES, deadline=None, derandomize=True)
@given(factors(), st.booleans(), st.booleans())
def test_product_of_stacks_is_the_stack_of_products(pair, transposed, shared):
    a, b = pair
    stack = Interval(torch.stack([a.lower, -a.upper]), torch.stack([a.upper, -a.lower]))
    right = b.mT.rearranged(torch.clone).mT if transposed else b
    right = right if shared else Interval(torch.stack([right.lower, right.lower]), torch.stack([right.upper] * 2))
    results = product(stack, right)
    size = a.magnitude @ b.magnitude
    for number, single in enumerate((a, -a)):
        require_equal("stack", results[number], slow_product(single, b), size)


@st.composite
def broadcast_factors(draw):
    shapes = draw(st.sampled_from([((3, 2), (3, 2)), ((3, 1), (1, 2)), ((1, 1), (2, 4)), ((2, 3), (1, 3))]))
    return tuple(draw(boxes(*shape)) for shape in shapes)


@settings(max_examples=MOST_EXAMPLES, deadline=None, derandomize=True)
@given(broadcast_factors())
def test_multiply_equals_the_extreme_corner_products(pair):
    result, exact = multiply(*pair), corner_products(*pair)
    assert torch.equal(result.lower, exact.lower)
    assert torch.equal(result.upper, exact.upper)
    assert not result.nonnegative or bool((result.lower >= 0).all())
    assert result.is_point == (pair[0].is_point and pair[1].is_point)


@pytest.mark.parametrize("batch", [(), (3,)], ids=["matrices", "batch"])
def test_a_product_over_no_inner_index_is_zero(batch):
    a, b = (Interval.trusted(-torch.ones(*batch, *shape), torch.ones(*batch, *shape)) for shape in ((2, 0), (0, 4)))
    for bound in (product(a, b).lower, product(a, b).upper):
        assert torch.equal(bound, torch.zeros(*batch, 2, 4))


def test_center_and_radius_cover_their_own_rounding():
    """Intervals much narrower than their distance from zero, and intervals that end there, by exact fractions."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(6, 64, generator=generator)
    lower = torch.rand(64, 6, generator=generator)
    for width in (0.0, 1e-6, 1.0):
        lower = lower if width < 1 else torch.zeros_like(lower)
        box = Interval(lower, lower * (1 + width) + (torch.rand(64, 6, generator=generator) if width == 1 else 0))
        bounds = product(Interval.point(signs), box)
        for row, column in itertools.product(range(6), range(6)):
            ends = [
                sorted(Fraction(a) * Fraction(end) for end in (low, high))
                for a, low, high in zip(
                    signs[row].tolist(), box.lower[:, column].tolist(), box.upper[:, column].tolist(), strict=True
                )
            ]
            if not box.is_point:
                assert Fraction(bounds.lower[row, column].item()) <= sum(low for low, _ in ends)
                assert Fraction(bounds.upper[row, column].item()) >= sum(high for _, high in ends)
