"""The kernel for CPUs: compiled loops over samples that stay in the cache."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.aggregation.kernels.interface import OuterGains, TopNKernel
from agt_lightning.aggregation.kernels.selection import Array, outer_sums, row_sums, shared_input_sums
from agt_lightning.interval import Interval


class CompiledKernel(TopNKernel):
    """Selection by thresholds, see `agt_lightning.aggregation.kernels.selection`; for tensors on a CPU.

    Example:
        >>> CompiledKernel().sums(torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, -3.0]]), n=2)
        tensor([5., 0.])
    """

    @override
    def sums(self, gains: Tensor, n: int) -> Tensor:
        result = gains.new_empty(len(gains))
        if gains.shape[1]:
            row_sums(_array(gains), n, result.numpy())
        return result if gains.shape[1] else result.zero_()

    @override
    def outer_sums(self, gains: OuterGains, n: int) -> tuple[Tensor, Tensor]:
        up, down = (gains.clean_outputs.lower.new_empty(gains.shape) for _ in range(2))
        factors = (gains.clean_outputs, gains.poisoned_outputs, gains.clean_inputs, gains.poisoned_inputs)
        if not all(_finite(factor) for factor in factors):  # a product of zero and infinity is NaN, and must stay so
            return up.fill_(torch.nan), down.fill_(torch.nan)
        if gains.shared_inputs is not None:
            above, below = (_array(each) for each in gains.output_gains())
            shared_input_sums(above, below, _array(gains.shared_inputs), n, up.numpy(), down.numpy())
            return up, down
        outer_sums(*(_ends(factor) for factor in factors), n, up.numpy(), down.numpy())
        return up, down


def _array(values: Tensor) -> Array:
    array: Array = values.detach().contiguous().numpy()
    return array


def _ends(factor: Interval) -> tuple[Array, Array]:
    return _array(factor.lower), _array(factor.upper)


def _finite(factor: Interval) -> bool:
    return bool(factor.lower.isfinite().all()) and bool(factor.upper.isfinite().all())
