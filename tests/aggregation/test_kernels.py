"""All kernels compute the same sums: of stored gains, and of gains that are differences of products of intervals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from agt_lightning.aggregation import SampleSet
from agt_lightning.aggregation.kernels import (
    CompiledKernel,
    OuterGains,
    TopNKernel,
    TorchKernel,
    kernel_for,
    threshold_sums,
)
from agt_lightning.gradients import Elementwise, OuterProduct, Stacked
from agt_lightning.interval import Interval
from tests.aggregation.oracles import check_top_n

KERNELS: list[TopNKernel] = [TorchKernel(), CompiledKernel()]
KINDS = ("point", "nonnegative point", "nonnegative", "signed", "half zero")
DTYPES = (torch.float32, torch.float64)


def _sorted_sums(gains: Tensor, n: int) -> Tensor:
    return gains.double().clamp(min=0).sort(dim=1, descending=True).values[:, :n].sum(dim=1)


def _require_close(found: Tensor, expected: Tensor, summands: int) -> None:
    slack = 4 * (summands + 8) * torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=slack, atol=slack * float(expected.abs().max() or 1))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
def test_sums_equal_the_best_subset(kernel: TopNKernel) -> None:
    check_top_n(kernel.sums)


def _rows(kind: str, samples: int, dtype: torch.dtype) -> Tensor:
    draw = torch.Generator().manual_seed(samples)
    normal = torch.randn(6, samples, generator=draw, dtype=torch.float64)
    rows = {
        "normal": normal,
        "heavy tails": normal**7,
        "half zero": normal.clamp(min=0),
        "few positive": torch.where(torch.rand(normal.shape, generator=draw) < 0.01, normal, -1.0),
        "few values": (normal * 2).round(),
        "all equal": torch.full_like(normal, 0.75),
        "rising": torch.arange(samples, dtype=torch.float64).expand(6, -1),
        "falling": -torch.arange(samples, dtype=torch.float64).expand(6, -1) + samples / 2,
        "large at multiples of a step": torch.where(
            torch.arange(samples) % max(1, samples // 256) == 0, 1.0, normal / 99
        ),
        "one huge": normal.index_fill(1, torch.tensor([samples // 2]), 1e6),
        "none positive": -normal.abs(),
        "tiny": normal * torch.finfo(dtype).tiny * 8,
    }
    return rows[kind].to(dtype).contiguous()


ROWS = ("normal", "heavy tails", "half zero", "few positive", "few values", "all equal", "rising", "falling",
        "large at multiples of a step", "one huge", "none positive", "tiny")  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
def test_sums_equal_sorting(kernel: TopNKernel, kind: str, dtype: torch.dtype) -> None:
    for samples in (1, 2, 17, 255, 600, 3000):
        gains = _rows(kind, samples, dtype)
        for n in {0, 1, 2, samples // 50, samples // 3, samples - 1, samples, samples + 5}:
            _require_close(kernel.sums(gains.clone(), n), _sorted_sums(gains, n), min(n, samples))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
@pytest.mark.parametrize("samples", [3, 1000])
def test_nan_among_gains_is_not_lost(kernel: TopNKernel, samples: int) -> None:
    gains = torch.zeros(2, samples)
    gains[0, 1] = torch.nan
    sums = kernel.sums(gains, 1)
    assert sums[0].isnan()
    assert sums[1] == 0


def _factor(kind: str, samples: int, units: int, seed: int, dtype: torch.dtype) -> Interval:
    draw = torch.Generator().manual_seed(seed)
    center = torch.randn(samples, 1, units, generator=draw, dtype=dtype)
    radius = 0.4 * torch.rand(samples, 1, units, generator=draw, dtype=dtype)
    if kind in ("point", "nonnegative point"):
        return Interval.point(center.abs() if kind == "nonnegative point" else center)
    if kind == "signed":
        return Interval(center - radius, center + radius)
    base = center.clamp(min=0) if kind == "half zero" else center.abs()
    return Interval.trusted(base, torch.where(base > 0, base + radius, 0.0), nonnegative=True)


def _wider(factor: Interval) -> Interval:
    draw = torch.Generator().manual_seed(3)
    more = [0.2 * torch.rand(factor.shape, generator=draw, dtype=factor.dtype) for _ in range(2)]
    return Interval.trusted(factor.lower - more[0], factor.upper + more[1])


def _expanded(gains: OuterGains, clean: OuterProduct, poisoned: OuterProduct, n: int) -> tuple[Tensor, Tensor]:
    """Return the sums of gains that are all stored, (o, k)."""
    elements, samples = clean.elements, gains.samples
    inner, outer, weights = clean.block(0, elements), poisoned.block(0, elements), samples.select(samples.weights)
    up = (outer.upper - samples.select(inner.upper)) * weights
    down = (samples.select(inner.lower) - outer.lower) * weights
    return _sorted_sums(up, n).reshape(clean.shape), _sorted_sums(down, n).reshape(clean.shape)


def _cut(gradient: OuterProduct, places: list[int]) -> Stacked:
    """Return the gradients of consecutive samples as several parts."""
    ends = [0, *places, gradient.samples]
    return Stacked([OuterProduct(gradient.outputs[a:b], gradient.inputs[a:b]) for a, b in itertools.pairwise(ends)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("moved", ["outputs", "inputs", "both"])
@pytest.mark.parametrize(("outputs", "inputs"), list(itertools.product(KINDS, KINDS)))
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
def test_outer_sums_equal_those_of_stored_gains(
    kernel: TopNKernel, outputs: str, inputs: str, moved: str, dtype: torch.dtype
) -> None:
    samples = 400
    d, z = _factor(outputs, samples, 5, 0, dtype), _factor(inputs, samples, 3, 1, dtype)
    clean = OuterProduct(d, z)
    e, y = (d if moved == "inputs" else _wider(d)), (z if moved == "outputs" else _wider(z))
    for rows in (None, torch.arange(50, 330), torch.arange(0, samples, 2).flip(0)):
        picked = slice(None) if rows is None else rows
        poisoned = OuterProduct(e[picked], y[picked])
        weights = torch.linspace(0.5, 1.5, samples, dtype=dtype)
        for first, second in ((clean, poisoned), (_cut(clean, [100, 101]), _cut(poisoned, [40]))):
            gains = OuterGains.between(first, second, SampleSet(weights, rows))
            assert gains is not None
            for n in (1, 7, 40, 1000):
                found = kernel.outer_sums(gains, n)
                for sums, expected in zip(found, _expanded(gains, clean, poisoned, n), strict=True):
                    _require_close(sums, expected, samples)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
@pytest.mark.parametrize("kind", ["steep where inputs are small", "few inputs", "equal inputs", "signs", "dead"])
def test_samples_of_small_inputs_can_be_the_largest(kernel: TopNKernel, kind: str) -> None:
    draw = torch.Generator().manual_seed(11)
    samples, n = 900, 20
    z = torch.rand(samples, 1, 4, generator=draw, dtype=torch.float64)
    slopes = torch.rand(samples, 1, 6, generator=draw, dtype=torch.float64)
    if kind == "steep where inputs are small":
        slopes = slopes * torch.where(z[:, :, :1] < 0.3, 1e4, 1.0)
    elif kind == "few inputs":
        z = torch.where(torch.arange(samples)[:, None, None] % 100 == 7, z, 0.0)
    elif kind == "equal inputs":
        z = torch.ones_like(z)
    elif kind == "signs":
        z = z - 0.5
    else:
        slopes = torch.where(torch.arange(samples)[:, None, None] % 90 == 3, slopes, 0.0)
    point = Interval.point(z)
    clean = OuterProduct(Interval.point(torch.zeros_like(slopes)), point)
    poisoned = OuterProduct(Interval(-slopes.flip(0), slopes), point)
    gains = OuterGains.between(clean, poisoned, SampleSet(torch.ones(samples, dtype=torch.float64)))
    assert gains is not None
    for found, expected in zip(kernel.outer_sums(gains, n), _expanded(gains, clean, poisoned, n), strict=True):
        _require_close(found, expected, n)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
@pytest.mark.parametrize("place", ["outputs", "inputs"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_factor_that_is_not_finite_is_not_lost(kernel: TopNKernel, place: str, bad: float) -> None:
    d, z = (_factor("signed", 700, 2, seed, torch.float64) for seed in range(2))
    wrong = (d if place == "outputs" else z).upper.index_fill(0, torch.tensor([3]), bad)
    e = Interval.trusted(d.lower, wrong) if place == "outputs" else d
    y = Interval.trusted(z.lower, wrong) if place == "inputs" else z
    gains = OuterGains.between(OuterProduct(d, z), OuterProduct(e, y), SampleSet(torch.ones(700, dtype=torch.float64)))
    assert gains is not None
    assert not torch.stack(kernel.outer_sums(gains, 1)).isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_shared_input_that_is_not_finite_is_not_lost(kernel: TopNKernel, bad: float) -> None:
    point = _factor("point", 700, 2, 0, torch.float64).lower.index_fill(0, torch.tensor([3]), bad)
    z, d = Interval.point(point), _factor("signed", 700, 2, 1, torch.float64)
    clean, poisoned = OuterProduct(d, z), OuterProduct(_wider(d), z)
    gains = OuterGains.between(clean, poisoned, SampleSet(torch.ones(700, dtype=torch.float64)))
    assert gains is not None
    assert not torch.stack(kernel.outer_sums(gains, 1)).isfinite().any()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
def test_slopes_that_overflow_are_not_lost(kernel: TopNKernel) -> None:
    """As differences of finite bounds; times an input of zero they are NaN, which must not pass for a small gain."""
    largest = torch.finfo(torch.float64).max
    d, z = Interval.point(torch.full((700, 1, 2), -largest, dtype=torch.float64)), torch.rand(700, 1, 2).double()
    z[::2] = 0
    clean = OuterProduct(d, Interval.point(z))
    poisoned = OuterProduct(Interval.trusted(d.lower, -d.lower), Interval.point(z))
    gains = OuterGains.between(clean, poisoned, SampleSet(torch.ones(700, dtype=torch.float64)))
    assert gains is not None
    assert not kernel.outer_sums(gains, 10)[0].isfinite().any()


@pytest.mark.parametrize("seed", range(40))
def test_tiers_hold_every_sample_above_their_limits(seed: int) -> None:
    """Numbers of all sizes, whose estimated limits are not in order."""
    draw = np.random.default_rng(seed)
    z = 10.0 ** draw.uniform(-300, 300, 2931) * draw.choice([-1, 1], 2931)
    places, sizes = np.empty(2932, np.int32), np.empty(2932)
    ends, limits = np.zeros(6, np.int64), np.zeros(6)
    threshold_sums._tiers(z, 65, places, sizes, ends, limits, np.empty(2932))
    for end, limit in zip(ends, limits, strict=True):
        assert set(places[:end] % 2931) == set(np.flatnonzero(np.abs(z) > limit))
    assert np.array_equal(sizes[: ends[-1]], np.abs(z)[places[: ends[-1]] % 2931])
    assert np.array_equal(places[: ends[-1]] >= 2931, z[places[: ends[-1]] % 2931] < 0)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
def test_the_same_tensors_in_another_order_are_no_shared_inputs(kernel: TopNKernel) -> None:
    rows = torch.arange(700).flip(0)
    d, z = _factor("signed", 700, 3, 0, torch.float64), _factor("point", 700, 2, 1, torch.float64)
    clean, poisoned = OuterProduct(d, z), OuterProduct(_wider(d), z)
    gains = OuterGains.between(clean, poisoned, SampleSet(torch.ones(700, dtype=torch.float64), rows))
    assert gains is not None
    for found, expected in zip(kernel.outer_sums(gains, 9), _expanded(gains, clean, poisoned, 9), strict=True):
        _require_close(found, expected, 9)


def test_other_gradients_have_no_factors() -> None:
    values = Elementwise(Interval.point(torch.ones(2, 3)))
    assert OuterGains.between(values, values, SampleSet(torch.ones(2))) is None
    positions = OuterProduct(Interval.point(torch.ones(2, 2, 3)), Interval.point(torch.ones(2, 2, 3)))
    assert OuterGains.between(positions, positions, SampleSet(torch.ones(2))) is None


def test_no_samples_give_zero() -> None:
    for kernel in KERNELS:
        assert kernel.sums(torch.ones(2, 0), 3).tolist() == [0, 0]


@pytest.mark.gpu
def test_a_gpu_computes_the_same() -> None:
    gains = _rows("half zero", 3000, torch.float64)
    kernel = kernel_for(torch.device("cuda"))
    _require_close(kernel.sums(gains.cuda(), 40).cpu(), _sorted_sums(gains, 40), 40)
