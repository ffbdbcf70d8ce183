"""The tolerance of a sum of gradients, with and without the pass over all of them."""

import math

import pytest
import torch

from agt_lightning.engine.self_checks import Tolerance


def never():
    """The sum of sizes, where the gradients' sum must decide."""
    raise AssertionError("asked for the sum of sizes")


@pytest.mark.parametrize(
    ("error", "covered"), [(0.0, True), (0.25, True), (0.5, True), (0.51, False), (math.nan, False)]
)
def test_an_error_is_covered_up_to_the_rounding_of_all_sizes(error, covered):
    tolerance = Tolerance(0.25, lambda: 2.0)
    assert tolerance.covers(torch.tensor([0.0, error]), torch.tensor([1.0, 0.5])) is covered


def test_small_errors_need_no_pass_over_the_gradients():
    tolerance = Tolerance(0.25, never)
    assert tolerance.covers(torch.tensor([0.1, 0.25]), torch.tensor([-1.0, 0.5]))
    with pytest.raises(AssertionError, match="asked"):
        tolerance.covers(torch.tensor([0.1, 0.26]), torch.tensor([-1.0, 0.5]))


def test_a_sum_that_cancels_is_compared_with_the_sizes():
    assert Tolerance(1e-16, lambda: 1e6).covers(torch.tensor([1e-11]), torch.tensor([1e-12]))


def test_a_sum_that_is_not_a_number_covers_nothing():
    assert not Tolerance(0.25, lambda: math.nan).covers(torch.tensor([0.1]), torch.tensor([math.nan]))
