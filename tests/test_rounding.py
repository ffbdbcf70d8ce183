import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agt_lightning.rounding import accumulated_roundoff, round_down, round_up, unit_roundoff

DTYPES = [torch.float32, torch.bfloat16]


def check_outward(down, up, value, dtype):
    """Casts bracket the value, and no neighbour does better."""
    tensor = torch.tensor([value], dtype=torch.float64)
    low, high = down(tensor, dtype), up(tensor, dtype)
    assert low.dtype == high.dtype == dtype
    assert low.item() <= value <= high.item(), f"{value} is not in [{low.item()}, {high.item()}]"
    if math.isfinite(low.item()):
        above = torch.nextafter(low, torch.full_like(low, math.inf))
        assert above.item() > value or low.item() == value
    if math.isfinite(high.item()):
        below = torch.nextafter(high, torch.full_like(high, -math.inf))
        assert below.item() < value or high.item() == value


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(DTYPES))
def test_casts_round_outward_and_no_further(value, dtype):
    check_outward(round_down, round_up, value, dtype)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-320, -1e-320, 3.4e38, 3.5e38, -3.5e38, 1.0, 1 + 2**-30, math.pi])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_casts_round_outward_at_the_edges(value, dtype):
    check_outward(round_down, round_up, value, dtype)


def test_unit_roundoff_is_half_the_spacing_at_one():
    assert unit_roundoff(torch.float32) == 2.0**-24
    assert unit_roundoff(torch.float64) == 2.0**-53


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_accumulated_roundoff_grows_and_starts_above_one_rounding(dtype):
    sizes = [accumulated_roundoff(operations, dtype) for operations in (1, 10, 100, 10_000, 1_000_000)]
    assert sizes == sorted(sizes)
    assert sizes[0] > unit_roundoff(dtype)


def test_accumulated_roundoff_covers_sums_of_float32():
    generator = torch.Generator().manual_seed(0)
    for size in (10, 1000, 100_000):
        terms = torch.randn(size, generator=generator)
        exact = terms.double().sum()
        for total in (terms.sum(), terms.flip(0).cumsum(0)[-1]):
            error = abs(total.double() - exact)
            assert error <= accumulated_roundoff(size, torch.float32) * terms.double().abs().sum()
