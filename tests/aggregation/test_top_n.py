import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agt_lightning.aggregation import top_n_sum
from tests.aggregation.oracles import check_top_n

EXACT = 1e-12


def test_top_n_sum_equals_the_best_subset():
    check_top_n(top_n_sum)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    st.integers(0, 40),
)
def test_top_n_sum_equals_sorting(values, n):
    gains = torch.tensor([values], dtype=torch.float64)
    expected = gains.clamp(min=0).sort(descending=True).values[:, :n].sum(dim=1)
    assert torch.allclose(top_n_sum(gains.clone(), n), expected, rtol=EXACT, atol=0)


def test_more_than_all_samples_is_all_samples():
    gains = torch.tensor([[1.0, -2.0, 4.0]])
    assert top_n_sum(gains.clone(), 3).tolist() == top_n_sum(gains.clone(), 100).tolist() == [5.0]


def test_no_samples_give_zero():
    assert top_n_sum(torch.ones(2, 3), 0).tolist() == [0.0, 0.0]


def test_nan_is_not_lost():
    assert top_n_sum(torch.tensor([[1.0, torch.nan, 3.0]]), 1).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.5, 3.0, 300.0, 2.0**40])
def test_gains_about_to_underflow_are_not_lost(size, dtype):
    """Breaking ties must not make a sum smaller, not even of numbers near the smallest one."""
    gains = torch.zeros(3, 1000, dtype=dtype)
    gains[0, -7:] = size * torch.finfo(dtype).tiny
    gains[1] = -1
    sums = top_n_sum(gains.clone(), 20)
    exact = gains[0].sum()
    assert sums[0] >= exact
    assert sums[0] <= exact + 20 * 1000 * torch.finfo(dtype).tiny
    assert sums[1:].tolist() == [0, 0]


def test_nan_among_many_is_not_lost():
    gains = torch.zeros(1, 1000)
    gains[0, 3] = torch.nan
    assert top_n_sum(gains, 1).isnan().all()


def test_float32_stays_float32():
    assert top_n_sum(torch.ones(2, 3), 2).dtype == torch.float32


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("samples", [300, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_equal_entries_change_nothing(zeros, samples, dtype):
    """Zeros, as of inactive units, are made distinct before the largest are selected, which does not change sums."""
    generator = torch.Generator().manual_seed(4)
    gains = torch.rand(5, samples, generator=generator, dtype=dtype)
    gains[torch.rand(5, samples, generator=generator) < zeros] = 0
    gains[4] *= -1
    for n in (1, 20, samples - 1):
        best = gains.clamp(min=0).sort(descending=True).values[:, :n]
        expected = best.double().sum(dim=1)
        rounding = samples * torch.finfo(dtype).eps
        assert torch.allclose(top_n_sum(gains.clone(), n).double(), expected, rtol=rounding, atol=0)
