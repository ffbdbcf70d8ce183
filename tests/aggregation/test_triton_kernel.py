"""The kernel in Triton: by its interpreter where there is no GPU, and compiled for one in either case."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agt_lightning.aggregation import SampleSet
from agt_lightning.aggregation.kernels import (
    Factor,
    OuterGains,
    TopNKernel,
    TorchKernel,
    TritonKernel,
    kernel_for,
    trial_of,
)
from agt_lightning.gradients import OuterProduct
from agt_lightning.interval import Interval
from tests.aggregation import test_kernels as laws
from tests.aggregation.oracles import check_top_n

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the compiled program")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]

COMPILER = str(Path(__file__).with_name("compile_triton_program.py"))

TILE = TritonKernel(outputs=4, inputs=4, samples=512)
"""Samples in few parts: the interpreter takes a millisecond for each."""

pytest.importorskip("triton")


class Elsewhere(TopNKernel):
    """A kernel on a device, for tensors of the CPU."""

    def __init__(self, kernel: TopNKernel, device: str):
        self.kernel, self.device = kernel, device

    def sums(self, gains: Tensor, n: int) -> Tensor:
        return self.kernel.sums(gains.to(self.device), n).cpu()

    def block_sums(self, outputs: Factor, inputs: Factor, n: int, up: Tensor, down: Tensor) -> None:
        there = [bound.to(self.device) for bound in (up, down)]
        self.kernel.block_sums(self._moved(outputs), self._moved(inputs), n, *there)
        for bound, found in zip((up, down), there, strict=True):
            bound.copy_(found)

    def _moved(self, factor: Factor) -> Factor:
        clean, poisoned = (each.to(device=self.device) for each in (factor.clean, factor.poisoned))
        return replace(factor, clean=clean, poisoned=poisoned)


pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""The interpreter computes by numpy, which warns of what is NaN on purpose."""


@pytest.fixture(params=DEVICES)
def kernel(request) -> TopNKernel:
    return Elsewhere(TILE, request.param)


def test_sums_equal_the_best_subset(kernel):
    check_top_n(kernel.sums)


@pytest.mark.parametrize("kind", laws.ROWS)
def test_sums_equal_sorting(kernel, kind):
    for samples, n, dtype in ((17, 2, torch.float64), (600, 13, torch.float64), (600, 200, torch.float32)):
        gains = laws._rows(kind, samples, dtype)
        laws._require_close(kernel.sums(gains, n), laws._sorted_sums(gains, n), n)


@pytest.mark.parametrize("n", [1, 16, 17, 30])
def test_number_of_gains_can_be_anything(kernel, n):
    gains = laws._rows("normal", 17, torch.float64)
    laws._require_close(kernel.sums(gains, n), laws._sorted_sums(gains, n), n)


@pytest.mark.parametrize("dtype", laws.DTYPES)
def test_sums_are_exact_where_gains_are_one_rounding_apart(kernel, dtype):
    gains = (1 + torch.finfo(dtype).eps * torch.arange(200, dtype=dtype)[torch.randperm(200)]).repeat(2, 1)
    gains[1] *= torch.finfo(dtype).tiny
    for n in (1, 50):
        laws._require_close(kernel.sums(gains, n), laws._sorted_sums(gains, n), n)


def test_gains_of_all_sizes_end(kernel):
    exponents = torch.linspace(-1000, 1000, 300, dtype=torch.float64)
    gains = 2 ** torch.stack([exponents, exponents.flip(0)])
    for n in (1, 150):
        laws._require_close(kernel.sums(gains, n), laws._sorted_sums(gains, n), n)


@pytest.mark.parametrize("samples", [3, 1000])
def test_nan_among_gains_is_not_lost(kernel, samples):
    laws.test_nan_among_gains_is_not_lost(kernel, samples)


FACTORS = [
    *itertools.product(("signed", "half zero"), ("signed", "point", "nonnegative point")),
    ("point", "signed"),
    ("nonnegative point", "nonnegative"),
]


@pytest.mark.parametrize(("outputs", "inputs"), FACTORS)
@pytest.mark.parametrize("moved", ["outputs", "both"])
def test_outer_sums_equal_those_of_stored_gains(kernel, outputs, inputs, moved):
    check_outer_sums(kernel, outputs, inputs, moved, samples=60, units=(3, 3))


@pytest.mark.parametrize("moved", ["outputs", "both"])
def test_units_and_samples_of_several_tiles(kernel, moved):
    small = Elsewhere(TritonKernel(outputs=2, inputs=2, samples=32), kernel.device)
    check_outer_sums(small, "signed", "point", moved, samples=43, units=(1, 3))


def check_outer_sums(kernel, outputs, inputs, moved, samples, units):
    d = laws._factor(outputs, samples, units[0], 0, torch.float64)
    z = laws._factor(inputs, samples, units[1], 1, torch.float64)
    clean, rows = OuterProduct(d, z), torch.arange(10, samples)
    poisoned = OuterProduct(laws._wider(d)[rows], (laws._wider(z) if moved == "both" else z)[rows])
    weights = SampleSet(torch.linspace(0.5, 1.5, samples, dtype=torch.float64), rows)
    gains = OuterGains.between(clean, poisoned, weights)
    assert gains is not None
    found = kernel.outer_sums(gains, 7)
    for sums, expected in zip(found, laws._expanded(gains, clean, poisoned, 7), strict=True):
        laws._require_close(sums, expected, samples)


@pytest.mark.parametrize("place", ["outputs", "inputs"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_factor_that_is_not_finite_is_not_lost(kernel, place, bad):
    laws.test_a_factor_that_is_not_finite_is_not_lost(kernel, place, bad)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_shared_input_that_is_not_finite_is_not_lost(kernel, bad):
    laws.test_a_shared_input_that_is_not_finite_is_not_lost(kernel, bad)


def test_products_that_overflow_are_not_lost(kernel):
    d = Interval.point(torch.full((30, 1, 2), 1e200, dtype=torch.float64))
    z = torch.full((30, 1, 2), 1e10, dtype=torch.float64).index_fill(0, torch.tensor([3]), 1e200)
    clean, poisoned = (OuterProduct(d, Interval.trusted(z, most)) for most in (z, 2 * z))
    gains = OuterGains.between(clean, poisoned, SampleSet(torch.ones(30, dtype=torch.float64)))
    assert gains is not None
    assert not kernel.outer_sums(gains, 2)[0].isfinite().any()


def test_no_samples_and_no_poison_give_zero(kernel):
    assert kernel.sums(torch.ones(2, 0), 3).tolist() == [0, 0]
    assert kernel.sums(torch.ones(2, 5), 0).tolist() == [0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [TorchKernel(), TritonKernel()], ids=lambda kernel: type(kernel).__name__)
def test_outer_sums_on_a_gpu_are_those_of_a_cpu(kernel):
    for outputs, inputs in itertools.product(("signed", "point"), laws.KINDS):
        laws.test_outer_sums_equal_those_of_stored_gains(
            Elsewhere(kernel, "cuda"), outputs, inputs, "both", torch.float64
        )


@pytest.mark.slow
def test_programs_compile_for_a_gpu(tmp_path):
    """Without a device: Triton brings the compiler, and another process has no interpreter."""
    pytest.importorskip("triton.compiler")
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    place = importlib.util.find_spec("agt_lightning.aggregation.kernels.triton_program").origin
    tile = TritonKernel()
    command = [sys.executable, COMPILER, place, *map(str, (tile.outputs, tile.inputs, tile.samples, tile.warps))]
    done = subprocess.run(
        command, env=settings | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["stored", "shared", "products"]


def test_kernel_on_trial_is_used_in_the_body_alone():
    device = torch.device("cpu")
    usual = type(kernel_for(device))
    with trial_of(TILE, device):
        assert kernel_for(device) is TILE
        with trial_of(TorchKernel(), device):
            assert isinstance(kernel_for(device), TorchKernel)
        assert kernel_for(device) is TILE
    assert type(kernel_for(device)) is usual


def test_triton_is_used_nowhere_by_default():
    assert os.environ.get("TRITON_INTERPRET") or torch.cuda.is_available()
    assert isinstance(kernel_for(torch.device("cuda")), TorchKernel)
