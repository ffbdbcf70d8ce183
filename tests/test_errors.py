"""Checks of arguments with a fixed set of values."""

import math

import pytest

from agt_lightning.errors import require_one_of


@pytest.mark.parametrize("value", ["a", "b"])
def test_allowed_values_pass(value):
    require_one_of("letter", value, ("a", "b"))


@pytest.mark.parametrize(
    ("value", "allowed", "message"),
    [
        ("c", ("a", "b"), r"Expected `letter` to be one of \('a', 'b'\), but got 'c'\."),
        (None, ("a", "b"), "but got None"),
        (math.nan, [1, 2, math.inf], r"one of \[1, 2, inf\], but got nan"),
    ],
)
def test_other_values_are_refused(value, allowed, message):
    with pytest.raises(ValueError, match=message):
        require_one_of("letter", value, allowed)
