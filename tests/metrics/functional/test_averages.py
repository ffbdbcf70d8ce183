import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agt_lightning.metrics.functional.averages import (
    count_samples,
    mean_from_above,
    rate_from_above,
    rate_from_below,
    sum_from_above,
)

positive = st.floats(min_value=1e-100, max_value=1e100)


@given(st.lists(positive, min_size=1, max_size=30))
def test_mean_is_never_below_the_exact_mean(losses: list[float]) -> None:
    mean = mean_from_above(*sum_from_above(torch.tensor(losses, dtype=torch.float64))).item()
    exact = sum(map(Fraction, losses)) / len(losses)
    assert exact <= Fraction(mean) <= exact * Fraction(1 + 1e-10)


def test_many_small_terms_are_not_lost() -> None:
    terms = torch.full((100_000,), 0.1, dtype=torch.float64)
    assert Fraction(mean_from_above(*sum_from_above(terms)).item()) >= Fraction(0.1)


def test_zero_stays_zero() -> None:
    assert mean_from_above(*sum_from_above(torch.zeros(3))).item() == 0.0


def test_float32_losses_are_summed_in_float64() -> None:
    total, count = sum_from_above(torch.tensor([1e8, 1.0, 1.0]))
    assert total.dtype == torch.float64
    assert total.item() == 1e8 + 2
    assert count.dtype == torch.long


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_losses_make_the_mean_infinite(bad: float) -> None:
    assert mean_from_above(*sum_from_above(torch.tensor([1.0, bad]))).item() == math.inf


def test_no_samples() -> None:
    nothing = torch.zeros(0)
    assert mean_from_above(*sum_from_above(nothing)).item() == math.inf
    assert rate_from_above(*count_samples(nothing.bool())).item() == 1.0
    assert rate_from_below(*count_samples(nothing.bool())).item() == 0.0


@given(st.integers(1, 2**40), st.floats(0, 1))
def test_rates_are_rounded_in_their_own_direction(total, share):
    hits = min(total, round(share * total))
    counts = (torch.tensor(hits), torch.tensor(total))
    exact = Fraction(hits, total)
    below, above = Fraction(rate_from_below(*counts).item()), Fraction(rate_from_above(*counts).item())
    assert 0 <= below <= exact <= above <= 1
    assert above - below <= exact * Fraction(1, 2**22)
