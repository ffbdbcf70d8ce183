import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agt_lightning.arithmetic import matmul, multiply
from agt_lightning.interval import Interval
from tests.arithmetic.oracles import boxes, check_matmul, corner_products, require_equal, slow_matmul

MOST_EXAMPLES = 60


@st.composite
def factors(draw, scale=1.0):
    rows, columns, inner = (draw(st.integers(1, size)) for size in (4, 4, 6))
    return draw(boxes(rows, inner, scale=scale)), draw(boxes(columns, inner, scale=1 / scale))


@settings(max_examples=MOST_EXAMPLES, deadline=None, derandomize=True)
@given(factors())
def test_matmul_equals_the_sum_of_exact_element_products(pair):
    check_matmul(matmul, *pair)


@settings(max_examples=MOST_EXAMPLES, deadline=None, derandomize=True)
@given(factors(scale=1e150))
def test_matmul_is_exact_for_extreme_magnitudes(pair):
    check_matmul(matmul, *pair)


@settings(max_examples=MOST_EXAMPLES, deadline=None, derandomize=True)
@given(factors())
def test_matmul_keeps_facts_that_are_true(pair):
    product = matmul(*pair)
    if product.nonnegative:
        assert bool((product.lower >= 0).all())
    assert product.is_point == (pair[0].is_point and pair[1].is_point)


@settings(max_examples=MOST_EXAMPLES, deadline=None, derandomize=True)
@given(factors())
def test_matmul_is_exact_in_float32(pair):
    a, b = (Interval.trusted(box.lower.float(), box.upper.float(), nonnegative=box.nonnegative) for box in pair)
    wide_a, wide_b = (Interval(box.lower.double(), box.upper.double()) for box in (a, b))
    product, exact = matmul(a, b), slow_matmul(wide_a, wide_b)
    rounded = Interval.trusted(exact.lower.float(), exact.upper.float())
    require_equal("matmul in float32", product, rounded, a.magnitude @ b.magnitude.T)


@pytest.mark.parametrize("columns", [1, 3], ids=["every column straddles", "some columns straddle"])
def test_matmul_takes_the_larger_product_where_both_straddle(columns):
    a = Interval(torch.tensor([[-2.0, 1.0]]), torch.tensor([[3.0, 1.0]]))
    b = Interval(torch.tensor([[-5.0, 0.0]] + [[1.0, 0.0]] * (columns - 1)), torch.tensor([[4.0, 0.0]] * columns))
    product = matmul(a, b)
    assert (product.lower[0, 0].item(), product.upper[0, 0].item()) == (-15.0, 12.0)


def test_matmul_sees_every_combination_of_signs():
    # One inner index per pair of sign classes: below, at, around and above zero.
    lower = torch.tensor([-3.0, -1.0, 0.0, -2.0, 1.0])
    upper = torch.tensor([-1.0, 0.0, 0.0, 4.0, 2.0])
    first, second = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    a = Interval(lower[first.flatten()][:, None], upper[first.flatten()][:, None])
    b = Interval(lower[second.flatten()][:, None], upper[second.flatten()][:, None])
    product, exact = matmul(a, b), slow_matmul(a, b)
    assert torch.equal(product.lower, exact.lower)
    assert torch.equal(product.upper, exact.upper)


@st.composite
def broadcast_factors(draw):
    shapes = draw(st.sampled_from([((3, 2), (3, 2)), ((3, 1), (1, 2)), ((1, 1), (2, 4)), ((2, 3), (1, 3))]))
    return tuple(draw(boxes(*shape)) for shape in shapes)


@settings(max_examples=MOST_EXAMPLES, deadline=None, derandomize=True)
@given(broadcast_factors())
def test_multiply_equals_the_extreme_corner_products(pair):
    product, exact = multiply(*pair), corner_products(*pair)
    assert torch.equal(product.lower, exact.lower)
    assert torch.equal(product.upper, exact.upper)
    assert not product.nonnegative or bool((product.lower >= 0).all())
    assert product.is_point == (pair[0].is_point and pair[1].is_point)
