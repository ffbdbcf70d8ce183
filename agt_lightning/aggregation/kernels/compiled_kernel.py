"""The kernel for CPUs: compiled loops over samples that stay in the cache."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.aggregation.kernels.base import TopNKernel
from agt_lightning.aggregation.kernels.factors import Factor
from agt_lightning.aggregation.kernels.threshold_sums import outer_sums, row_sums, shared_input_sums
from agt_lightning.arithmetic.compiled import Array, all_finite
from agt_lightning.interval import Interval


class CompiledKernel(TopNKernel):
    """Sums by thresholds, see `agt_lightning.aggregation.kernels.threshold_sums`; for tensors on a CPU.

    Example:
        >>> CompiledKernel().sums(torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, -3.0]]), n=2)
        tensor([5., 0.])
    """

    @override
    def sums(self, gains: Tensor, n: int) -> Tensor:
        result = gains.new_zeros(len(gains))
        if gains.shape[1]:
            row_sums(_array(gains), n, result.numpy())
        return result

    @override
    def block_sums(self, outputs: Factor, inputs: Factor, n: int, up: Tensor, down: Tensor) -> None:
        points = inputs.shared_points
        read = [outputs.clean, outputs.poisoned, inputs.clean, inputs.poisoned]
        if points is not None:  # differences of finite numbers can overflow
            above, below = outputs.poisoned.upper - outputs.clean.upper, outputs.clean.lower - outputs.poisoned.lower
            read += [Interval.point(above), Interval.point(below)]
        if not all(map(_finite, read)):  # a product of zero and infinity is NaN, and must stay so
            up.fill_(torch.nan)
            down.fill_(torch.nan)
        elif points is not None:
            shared_input_sums(_array(above), _array(below), _array(points), n, up.numpy(), down.numpy())
        else:
            d, e, z, y = map(_ends, read)
            outer_sums(d, e, z, y, n, up.numpy(), down.numpy())


def _array(values: Tensor) -> Array:
    array: Array = values.detach().contiguous().numpy()
    return array


def _ends(factor: Interval) -> tuple[Array, Array]:
    return _array(factor.lower), _array(factor.upper)


def _finite(factor: Interval) -> bool:
    lower, upper = (_array(end).reshape(-1) for end in (factor.lower, factor.upper))
    return bool(all_finite(lower)) and (factor.is_point or bool(all_finite(upper)))
