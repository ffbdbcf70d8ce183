"""Shares of the width that sampling attains: one where bounds are exact, never more."""

import pytest

from tests.fuzz.shares import attained_share, subjects

SOME = {"loss: charbonnier", "loss: cross_entropy", "loss: huber", "sqrt", "mul", "softmax", "div", "tanh"}
LOOSE = {"softmax", "div"}


@pytest.mark.parametrize("name", sorted(SOME))
def test_sampling_attains_what_is_exact_and_no_more(name: str) -> None:
    (subject,) = (each for each in subjects() if each[0] == name)
    share = attained_share(*subject[1:], radius=0.5)
    assert share < 1 + 1e-9
    assert share > (0.02 if name in LOOSE else 0.95)
