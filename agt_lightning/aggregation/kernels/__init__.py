"""Kernels for sums of the n largest gains; all compute the same, `TorchKernel` defines what."""

import torch

from agt_lightning.aggregation.kernels.base import TopNKernel
from agt_lightning.aggregation.kernels.compiled_kernel import CompiledKernel
from agt_lightning.aggregation.kernels.factors import Factor
from agt_lightning.aggregation.kernels.outer_gains import OuterGains
from agt_lightning.aggregation.kernels.torch_kernel import TorchKernel

__all__ = ["CompiledKernel", "Factor", "OuterGains", "TopNKernel", "TorchKernel", "kernel_for"]


def kernel_for(device: torch.device) -> TopNKernel:
    """Return the fastest kernel for tensors of a device.

    Example:
        >>> type(kernel_for(torch.device("cpu"))).__name__
        'CompiledKernel'
    """
    return CompiledKernel() if device.type == "cpu" else TorchKernel()
