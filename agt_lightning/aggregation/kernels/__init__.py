"""Kernels for sums of the n largest gains; all compute the same, `TorchKernel` defines what."""

from agt_lightning.aggregation.kernels.base import TopNKernel
from agt_lightning.aggregation.kernels.choice import kernel_for, kernel_of, trial_of
from agt_lightning.aggregation.kernels.compiled_kernel import CompiledKernel
from agt_lightning.aggregation.kernels.factors import Factor
from agt_lightning.aggregation.kernels.outer_gains import OuterGains
from agt_lightning.aggregation.kernels.source_kernel import SourceKernel
from agt_lightning.aggregation.kernels.torch_kernel import TorchKernel
from agt_lightning.aggregation.kernels.triton_kernel import TritonKernel

__all__ = [
    "CompiledKernel",
    "Factor",
    "OuterGains",
    "SourceKernel",
    "TopNKernel",
    "TorchKernel",
    "TritonKernel",
    "kernel_for",
    "kernel_of",
    "trial_of",
]
