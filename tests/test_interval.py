import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval, LpBall, check_finite_and_ordered

ONES, ZEROS = torch.ones(2), torch.zeros(2)

WRONG = {
    "integers": (
        torch.zeros(2, dtype=torch.int64),
        ONES,
        TypeError,
        "Expected `lower` to be a floating point tensor, but got torch.int64",
    ),
    "a list": (ZEROS, [1.0, 1.0], TypeError, "Expected `upper` to be a floating point tensor, but got list"),
    "shapes": (ZEROS, torch.ones(3), ValueError, r"of one shape, but got \(2,\) and \(3,\)"),
    "shapes that broadcast": (
        torch.zeros(2, 1),
        torch.ones(2, 2),
        ValueError,
        r"of one shape, but got \(2, 1\) and \(2, 2\)",
    ),
    "dtypes": (
        ZEROS,
        ONES.double(),
        TypeError,
        "of one dtype and device, but got torch.float32 on cpu and torch.float64",
    ),
    "crossed": (
        ONES,
        ZEROS,
        UnsoundBoundError,
        r"lower <= upper for interval, but got \[1.0, 0.0\] at index \(0,\) \(2 of 2",
    ),
    "crossed once": (
        ZEROS,
        torch.tensor([1.0, -1.0]),
        UnsoundBoundError,
        r"got \[0.0, -1.0\] at index \(1,\) \(1 of 2",
    ),
    "NaN below": (torch.tensor([0.0, math.nan]), ONES, UnsoundBoundError, r"got \[nan, 1.0\] at index \(1,\)"),
    "NaN above": (ZEROS, torch.tensor([math.nan, 1.0]), UnsoundBoundError, r"got \[0.0, nan\] at index \(0,\)"),
    "infinite above": (ZEROS, torch.tensor([1.0, math.inf]), UnsoundBoundError, r"got \[0.0, inf\] at index \(1,\)"),
    "infinite below": (torch.tensor([-math.inf, 0.0]), ONES, UnsoundBoundError, r"got \[-inf, 1.0\]"),
    "infinite both": (torch.full((2,), math.inf), torch.full((2,), math.inf), UnsoundBoundError, r"got \[inf, inf\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_bounds_are_refused(name):
    lower, upper, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        Interval(lower, upper)


def test_check_names_what_it_checks():
    with pytest.raises(UnsoundBoundError, match="for parameter `w`"):
        check_finite_and_ordered(Interval.trusted(ONES, ZEROS), "parameter `w`")


def test_an_interval_cannot_be_changed():
    with pytest.raises(AttributeError):
        Interval(ZEROS, ONES).lower = ONES


@st.composite
def boxes(draw):
    numbers = st.floats(-1e3, 1e3, width=32)
    pairs = draw(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5))
    tensor = torch.tensor(pairs, dtype=torch.float64)
    return Interval(tensor.amin(dim=1), tensor.amax(dim=1))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(boxes(), st.floats(0, 1))
def test_properties_describe_the_points_inside(box, share):
    point = torch.minimum(box.upper, box.lower + share * box.width)
    assert box.contains(point)
    assert bool((point.abs() <= box.magnitude).all())
    assert bool((point.abs() >= box.mignitude).all())
    assert torch.equal(box.width, box.upper - box.lower)
    assert torch.equal(box.center + box.radius, (box.lower + box.upper) / 2 + box.width / 2)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(boxes(), st.floats(0, 1), st.floats(0, 1))
def test_sums_and_differences_contain_those_of_points(box, first, second):
    other = Interval(box.lower.flip(0) - 1, box.upper.flip(0) + 2)
    x, y = box.lower + first * box.width, other.lower + second * other.width
    rounding = 1e-12 * float(1 + box.magnitude.max())
    assert (box + other).contains(x + y, rounding)
    assert (box - other).contains(x - y, rounding)
    assert (-box).contains(-x, rounding)
    assert torch.equal((box - other).width, (box + other).width) or torch.allclose(
        (box - other).width, box.width + other.width, rtol=0, atol=rounding
    )


def test_mignitude_is_zero_where_zero_is_inside():
    box = Interval(torch.tensor([-1.0, 2.0, -3.0]), torch.tensor([1.0, 3.0, -2.0]))
    assert box.mignitude.tolist() == [0.0, 2.0, 2.0]
    assert box.magnitude.tolist() == [1.0, 3.0, 3.0]


def test_points_stay_points():
    point = Interval.point(ONES, nonnegative=True)
    results = (-point, point + point, point - point, point[0:1], point.to(dtype=torch.float64), point.to(device="cpu"))
    assert all(result.is_point for result in results)
    assert not (point + Interval(ZEROS, ONES)).is_point


def test_nonnegativity_is_kept_only_where_it_holds():
    positive, signed = Interval(ZEROS, ONES, nonnegative=True), Interval(-ONES, ONES)
    assert (positive + positive).nonnegative
    assert positive[0].nonnegative
    assert not (positive - positive).nonnegative
    assert not (-positive).nonnegative
    assert not (positive + signed).nonnegative
    assert positive.intersect(signed).nonnegative
    assert not positive.hull(signed).nonnegative


def test_contains_is_false_for_nan_and_outside():
    box = Interval(ZEROS, ONES)
    assert not box.contains(torch.tensor([0.5, math.nan]))
    assert not box.contains(torch.tensor([0.5, 1.1]))
    assert box.contains(torch.tensor([0.5, 1.1]), tolerance=0.2)
    assert not box.contains(torch.tensor([math.nan, math.nan]), tolerance=math.inf)


def test_intersection_and_hull_are_the_largest_and_smallest():
    a, b = Interval(ZEROS, 2 * ONES), Interval(ONES, 3 * ONES)
    both, either = a.intersect(b), a.hull(b)
    assert (both.lower[0].item(), both.upper[0].item()) == (1.0, 2.0)
    assert (either.lower[0].item(), either.upper[0].item()) == (0.0, 3.0)


def test_enclosures_that_do_not_meet_are_a_bug():
    with pytest.raises(UnsoundBoundError, match="intersection of two enclosures"):
        Interval(ZEROS, ONES).intersect(Interval(2 * ONES, 3 * ONES))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.floats(-1e38, 1e38), st.floats(0, 1e30), st.sampled_from([torch.float32, torch.bfloat16]))
def test_narrowing_cast_rounds_outward(lower, width, dtype):
    box = Interval(torch.tensor([lower]).double(), torch.tensor([lower]).double() + width)
    cast = box.to(dtype=dtype)
    assert cast.dtype == dtype
    assert cast.lower.item() <= box.lower.item()
    assert cast.upper.item() >= box.upper.item()


def test_cast_of_an_exact_point_stays_a_point():
    assert Interval.point(torch.tensor([0.5]).double()).to(dtype=torch.float32).is_point
    assert not Interval.point(torch.tensor([1 / 3], dtype=torch.float64)).to(dtype=torch.float32).is_point


def test_cast_keeps_nonnegative_bounds_nonnegative():
    tiny = Interval.point(torch.tensor([1e-60], dtype=torch.float64), nonnegative=True).to(dtype=torch.float32)
    assert tiny.nonnegative
    assert tiny.lower.item() == 0.0
    assert tiny.upper.item() > 0.0


def test_widening_cast_changes_nothing():
    box = Interval(torch.tensor([0.1]), torch.tensor([0.3]))
    assert torch.equal(box.to(dtype=torch.float64).lower.float(), box.lower)
    assert box.to() is not None
    assert torch.equal(box.to().upper, box.upper)


def test_indexing_selects_rows():
    box = Interval(torch.zeros(3, 2), torch.arange(6.0).reshape(3, 2))
    assert box[1].upper.tolist() == [2.0, 3.0]
    assert box[torch.tensor([2, 0])].upper.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert box[:2].shape == (2, 2)
    assert box[:, 1].upper.tolist() == [1.0, 3.0, 5.0]
    assert box[1:, None].shape == (2, 1, 2)


MONOTONE = {
    "tanh": torch.tanh,
    "a sum": lambda bound: bound.sum(dim=0, keepdim=True),
    "added constants": lambda bound: bound + torch.arange(len(bound)),
}
REARRANGED = {
    "reversed": lambda bound: bound.flip(0),
    "repeated": lambda bound: bound.repeat(3),
    "some of them": lambda bound: bound[::2],
    "beside zeros": lambda bound: torch.nn.functional.pad(bound, (1, 1)),
}
EXAMPLES = settings(max_examples=30, deadline=None, derandomize=True)
SHARES = st.floats(0, 1)


def inside(box, share):
    return torch.minimum(box.upper, box.lower + share * box.width)


@pytest.mark.parametrize("name", MONOTONE)
@EXAMPLES
@given(box=boxes(), share=SHARES)
def test_mapped_contains_the_image_of_every_point(name, box, share):
    function = MONOTONE[name]
    image = box.mapped(function)
    assert image.contains(function(inside(box, share)))
    assert torch.equal(image.lower, function(box.lower))
    assert torch.equal(image.upper, function(box.upper))


@pytest.mark.parametrize("name", REARRANGED)
@EXAMPLES
@given(box=boxes(), share=SHARES)
def test_rearranged_moves_both_bounds_alike(name, box, share):
    function = REARRANGED[name]
    moved = box.rearranged(function)
    assert moved.contains(function(inside(box, share)))
    assert torch.equal(moved.width, function(box.width))


@EXAMPLES
@given(boxes(), st.floats(-10, 10), SHARES)
def test_scaled_and_square_contain_every_point_and_are_attained(box, factor, share):
    point = inside(box, share)
    assert box.scaled(factor).contains(factor * point, 1e-12 * float(box.magnitude.max()) * abs(factor))
    assert torch.equal(box.scaled(factor).magnitude, box.magnitude * abs(factor))
    assert box.square().contains(point.square())
    ends = torch.maximum(box.lower.square(), box.upper.square())
    assert torch.equal(box.square().upper, ends)
    assert bool((box.square().lower[(box.lower <= 0) & (box.upper >= 0)] == 0).all())


@EXAMPLES
@given(boxes(), st.floats(0, 10), SHARES, st.floats(-1, 1))
def test_widened_contains_everything_within_the_distance(box, by, share, direction):
    near = inside(box, share) + by * direction
    rounding = 1e-12 * float(1 + box.magnitude.max())
    assert box.widened(by).contains(near, rounding)
    assert box.widened(torch.full_like(box.lower, by)).contains(near, rounding)
    square = box.square()
    near = (inside(square, share) + by * direction).clamp(min=0)
    rounding = 1e-12 * float(1 + square.magnitude.max())
    assert square.widened(by, nonnegative=True).contains(near, rounding)


def test_widened_is_cut_at_zero_only_where_the_values_are_nonnegative():
    positive = Interval(ZEROS, ONES, nonnegative=True)
    assert positive.widened(1.0).lower.tolist() == [-1.0, -1.0]
    assert not positive.widened(1.0).nonnegative
    cut = positive.widened(1.0, nonnegative=True)
    assert cut.lower.tolist() == [0.0, 0.0]
    assert cut.nonnegative


def test_changed_points_stay_points():
    point = Interval.point(ONES)
    assert point.mapped(torch.tanh).is_point
    assert point.rearranged(torch.clone).is_point
    assert point.scaled(-2.0).is_point
    assert point.square().is_point
    assert Interval.point(torch.ones(2, 3)).mT.is_point
    assert not Interval(ZEROS, ONES).rearranged(torch.clone).is_point
    assert not Interval(ONES, ONES.clone()).mapped(torch.tanh).is_point


def test_facts_are_kept_only_where_they_stay_true():
    ball = LpBall(ONES[None], ONES, 2.0)
    value = Interval.trusted(ZEROS[None], ONES[None], nonnegative=True, ball=ball, balanced=True)
    changed = (
        value.rearranged(torch.clone),
        value.mapped(torch.clone),
        value.mapped(torch.clone, nonnegative=True),
        value.scaled(2.0),
        value.scaled(0.0),
        value.scaled(-1.0),
        value.square(),
        value.widened(0.0),
        Interval.cat([value, value]),
    )
    assert [result.nonnegative for result in changed] == [True, False, True, True, True, False, True, False, True]
    assert not any(result.ball or result.balanced for result in changed)
    assert value.scaled(1.0) is value
    assert not Interval.cat([value, Interval(-ONES[None], ONES[None])]).nonnegative


def test_transposed_exchanges_the_last_axes():
    box = Interval(torch.zeros(2, 3, 1), torch.arange(6.0).reshape(2, 3, 1))
    assert torch.equal(box.mT.upper, box.upper.mT)


@EXAMPLES
@given(boxes(), boxes(), SHARES)
def test_concatenation_contains_concatenated_points(first, second, share):
    together = Interval.cat([first, second])
    assert together.contains(torch.cat([inside(first, share), inside(second, share)]))
    side_by_side = Interval.cat([first[None], first[None]], dim=1)
    assert side_by_side.shape == (1, 2 * len(first.lower))


def test_concatenation_is_a_point_only_if_all_parts_are():
    point, box = Interval.point(ONES), Interval(ZEROS, ONES)
    assert Interval.cat([point, point]).is_point
    assert not Interval.cat([point, box]).is_point
    assert Interval.cat([box]) is box


def test_checked_bounds_are_a_point_only_if_they_are_equal():
    assert Interval.checked(ONES, ONES.clone()).is_point
    assert not Interval.checked(torch.tensor([0.0, 1.0]), ONES).is_point
    with pytest.raises(UnsoundBoundError, match=r"lower <= upper for interval, but got \[1.0, 0.0\]"):
        Interval.checked(ONES, ZEROS)
