"""Bounds that rounding crossed are put in order; bounds that a mistake crossed are refused."""

import pytest
import torch

from agt_lightning.arithmetic.order import intersection, require_uncrossed, uncrossed
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval

LOW, HIGH = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 2.0 - 1e-15]).double()


def test_crossed_bounds_change_places():
    bounds = uncrossed(LOW, HIGH)
    assert torch.equal(bounds.lower, torch.minimum(LOW, HIGH))
    assert torch.equal(bounds.upper, torch.maximum(LOW, HIGH))


def test_bounds_in_order_are_left_as_they_are():
    assert uncrossed(LOW, LOW + 1).lower is LOW
    box = Interval(LOW, LOW + 1)
    assert require_uncrossed(box) is box


def test_points_stay_points():
    point = Interval.point(LOW)
    assert require_uncrossed(point) is point


def test_crossing_by_rounding_keeps_the_fact_of_sign():
    assert require_uncrossed(Interval.trusted(LOW, HIGH, nonnegative=True)).nonnegative


def test_crossing_by_more_than_rounding_is_refused():
    with pytest.raises(UnsoundBoundError, match=r"they cross by 0\.1 at size 3\. A rule is wrong"):
        require_uncrossed(Interval.trusted(LOW, torch.tensor([3.0, 1.9]).double()))


def test_nan_is_left_for_the_check_of_the_result():
    value = Interval.trusted(LOW, torch.tensor([3.0, float("nan")]).double())
    assert require_uncrossed(value).upper.isnan().tolist() == [False, True]


def test_intersection_is_what_both_contain():
    first, second = Interval(LOW, LOW + 4), Interval(LOW + 1, LOW + 2)
    both = intersection(first, second)
    assert torch.equal(both.lower, second.lower)
    assert torch.equal(both.upper, second.upper)


def test_enclosures_that_rounding_parts_leave_the_gap():
    both = intersection(Interval(LOW, LOW), Interval(LOW + 1e-15, LOW + 1e-15))
    assert bool((both.width >= 0).all())
    assert both.contains(LOW)
