"""Certified steps on a GPU beside plain ones: the paper's workloads with each kernel, and the ball alone."""

from __future__ import annotations

import gc
from collections.abc import Iterable

import torch

from agt_lightning.aggregation.kernels import TopNKernel, TritonKernel, kernel_for, trial_of
from recipes.benchmark.ball import workloads as balls
from recipes.benchmark.cuda.request import Request, Write
from recipes.benchmark.report import Row
from recipes.benchmark.step_cost import Setting, Training
from recipes.benchmark.workloads import TABLE, Workload

_TYPES = (torch.float64, torch.float32)
"""Of training and bounds."""

_INTERPRETED = TritonKernel(outputs=16, inputs=32, samples=128)


def measure_usual(request: Request, write: Write) -> None:
    """Measure the paper's workloads with the kernel that trainings use, in both types."""
    _measure(request, write, TABLE, kernel_for(torch.device(request.device)))


def measure_triton(request: Request, write: Write) -> None:
    """Measure them with the kernel in Triton; only a linear one on a CPU, where an interpreter runs it."""
    if request.device == "cuda":
        _measure(request, write, TABLE, TritonKernel())
    else:
        _measure(request, write, TABLE[1:2], _INTERPRETED)


def measure_ball(request: Request, write: Write) -> None:
    """Measure steps with the ball alone, in double precision."""
    setting = Setting(request.device, torch.float64, torch.float64, request.repeats, domains=("ball",))
    for workload in balls():
        write(row(workload.smaller(request.scale), setting))


def _measure(request: Request, write: Write, workloads: Iterable[Workload], kernel: TopNKernel) -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    with trial_of(kernel, torch.device(request.device)):
        for workload in workloads:
            for dtype in _TYPES:
                torch.backends.cudnn.enabled = dtype == torch.float64  # its algorithms in single precision are refused
                setting = Setting(request.device, dtype, dtype, request.repeats)
                write({"kernel": type(kernel).__name__, **row(workload.smaller(request.scale), setting)})


def row(workload: Workload, setting: Setting) -> Row:
    """Measure one training; what stops it is the row's error.

    Args:
        workload: what is trained.
        setting: of training and bounds.
    """
    dtype = str(setting.training).removeprefix("torch.")
    name: Row = {"workload": workload.name, "b": workload.samples, "n": workload.adversary.n, "type": dtype}
    gc.collect()
    try:
        training = Training(workload, setting)
        cost = training.costs()
        plain, certified = training.peaks()
    except Exception as error:  # it is a result, and other workloads follow
        return {**name, "error": f"{type(error).__name__}: {str(error)[:300]}"}
    return {
        **name,
        "plain ms": 1e3 * cost.seconds[0],
        "certified ms": 1e3 * cost.seconds[1],
        "ratio": cost.ratio,
        "peak memory MB": certified / 1e6,
        "memory ratio": certified / plain,
        "mean width": cost.width,
    }
