"""Compiled loops compute what torch computes, also where their machine code cannot be kept."""

import numba
import numpy as np
import pytest
import torch

from agt_lightning.arithmetic import compiled as loops
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.gradients import samples_last
from agt_lightning.interval import Interval
from agt_lightning.rules.activation import heaviside_product

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


SPECIAL = (0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan)


def _large(dtype, seed):
    """Return a tensor that loops are worth compiling for, with all special numbers beside each other."""
    values = torch.randn(100, 100, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    values[0, : len(SPECIAL)] = torch.tensor(SPECIAL, dtype=dtype)
    values[seed + 1, : len(SPECIAL)] = torch.tensor(SPECIAL, dtype=dtype)
    return values


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_large_tensors_in_order_are_flat(dtype):
    values = _large(dtype, 0)
    assert np.shares_memory(loops.flat(values)[0], values.numpy())
    assert loops.flat(values, values.T) is None
    assert loops.flat(values[:3]) is None
    assert loops.flat(values.clone().requires_grad_()) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_move_outward_as_without_loops(dtype, monkeypatch):
    lower = _large(dtype, 1)
    wide = Interval.trusted(lower, lower + _large(dtype, 2).abs())
    for value in (wide, Interval.point(lower)):
        found = Arithmetic(torch.float32, dtype).outward(value, 1000)
        expected = value.widened_relatively(Arithmetic(torch.float32, dtype).relative(1000))
        torch.testing.assert_close(found.lower, expected.lower, equal_nan=True)
        torch.testing.assert_close(found.upper, expected.upper, equal_nan=True)
        finite = lower.isfinite() & (lower != 0)
        assert bool((found.lower < lower)[finite].all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_relu_are_those_without_loops(dtype, monkeypatch):
    grad = Interval.trusted(_large(dtype, 1), _large(dtype, 1) + 0.5)
    x = Interval.trusted(_large(dtype, 2), _large(dtype, 2) + 0.5)
    found = heaviside_product(grad, x)
    monkeypatch.setattr(loops, "_FEWEST", 10**9)
    expected = heaviside_product(grad, x)
    known = ~x.lower.isnan() & ~grad.lower.isnan()
    assert torch.equal(found.lower[known], expected.lower[known])
    assert torch.equal(found.upper[known], expected.upper[known])
    assert bool(found.upper[grad.upper.isnan() & (x.lower > 0)].isnan().all())


def test_gradients_of_samples_meet_a_parameter_that_they_share():
    """Behind the parameter in memory lie numbers that a loop would read if it ran through both in step."""
    memory = torch.ones(8192, dtype=torch.float64)
    memory[:1024] = -1.0
    x = Interval(memory[:1024], memory[:1024] + 3)
    grad = Interval(memory.new_ones(8, 1024), memory.new_full((8, 1024), 2.0))
    product = heaviside_product(grad, x)
    assert torch.equal(product.lower, torch.zeros(8, 1024).double())
    assert torch.equal(product.upper, grad.upper)


def test_arrays_of_several_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        loops.flat(torch.ones(4, 1024), torch.ones(1024))
