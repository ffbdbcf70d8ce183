"""The kernel that sums gains on a device, and trials of another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from agt_lightning.aggregation.kernels.base import TopNKernel
from agt_lightning.aggregation.kernels.compiled_kernel import CompiledKernel
from agt_lightning.aggregation.kernels.source_kernel import SourceKernel
from agt_lightning.aggregation.kernels.torch_kernel import TorchKernel
from agt_lightning.aggregation.weighted_sums import SampleSet
from agt_lightning.arithmetic.compiled import COMPILES

_ON_TRIAL: dict[str, TopNKernel] = {}
"""Kernels that are used instead of the fastest ones, by type of device."""


def kernel_for(device: torch.device) -> TopNKernel:
    """Return the fastest kernel for tensors of a device; on a CPU without numba, that of other devices.

    Example:
        >>> type(kernel_for(torch.device("cuda"))).__name__
        'TorchKernel'
    """
    if device.type in _ON_TRIAL:
        return _ON_TRIAL[device.type]
    return CompiledKernel() if COMPILES and device.type == "cpu" else TorchKernel()


def kernel_of(samples: SampleSet) -> TopNKernel:
    """Return the fastest kernel for sums over the samples of a step, or over their sources, if these are chosen.

    Example:
        >>> type(kernel_of(SampleSet(torch.ones(2), sources=torch.tensor([4, 4])))).__name__
        'SourceKernel'
    """
    chosen = kernel_for(samples.weights.device)
    return chosen if samples.membership is None else SourceKernel(samples.membership, chosen)


@contextmanager
def trial_of(kernel: TopNKernel, device: torch.device) -> Iterator[None]:
    """Run the body with another kernel for all devices of this type, to check or to measure it in whole trainings.

    Args:
        kernel: to be used in all threads of the process.
        device: of the tensors.

    Example:
        >>> with trial_of(TorchKernel(), torch.device("cpu")):
        ...     type(kernel_for(torch.device("cpu"))).__name__
        'TorchKernel'
    """
    before = dict(_ON_TRIAL)
    _ON_TRIAL[device.type] = kernel
    try:
        yield
    finally:
        _ON_TRIAL.clear()
        _ON_TRIAL.update(before)
