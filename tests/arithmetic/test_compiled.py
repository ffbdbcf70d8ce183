"""Compiled loops compute what torch computes, also where their machine code cannot be kept."""

import numba
import pytest
import torch

from agt_lightning.arithmetic import compiled as loops
from agt_lightning.gradients import samples_last

DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (700, 5), (257, 33)])
@pytest.mark.parametrize("rows", ["all", "some", "unordered"])
def test_samples_last_is_a_transpose(shape, rows, dtype):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(count, shape[1], generator=generator, dtype=dtype) for count in (shape[0], 2, 9)]
    whole = torch.cat(parts)
    picked = {"all": None, "some": torch.arange(0, len(whole), 2), "unordered": torch.randperm(len(whole))[:5]}[rows]
    chosen = whole if picked is None else whole[picked]
    assert torch.equal(samples_last(parts, picked), chosen.T)
    columns = whole.T.contiguous().T
    assert torch.equal(samples_last([columns], picked), chosen.T), "samples that are last in memory already"


@pytest.mark.parametrize("dtype", DTYPES)
def test_order_is_that_of_every_entry(dtype):
    lower = torch.zeros(1000, dtype=dtype)
    for value, expected in ((0.0, True), (1.0, True), (-1e-30, False), (torch.nan, False), (torch.inf, True)):
        upper = lower.clone()
        upper[771] = value
        assert loops.in_order(lower.numpy(), upper.numpy()) is expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite_is_neither_infinite_nor_nan(dtype):
    for value in (0.0, torch.finfo(dtype).max, torch.inf, -torch.inf, torch.nan):
        values = torch.zeros(1000, dtype=dtype)
        values[501] = value
        assert loops.all_finite(values.numpy()) is bool(values.isfinite().all())


def test_functions_are_compiled_where_no_cache_can_be_written(monkeypatch):
    original = numba.njit

    def without_cache(*, cache=False, **settings):
        if cache:
            raise RuntimeError("no locator available for file")
        return original(**settings)

    monkeypatch.setattr(loops.numba, "njit", without_cache)
    double = loops.compiled(lambda x: 2 * x)
    assert double(3.0) == 6.0
