"""The kernel in plain torch, for every device: the definition that other kernels are tested against."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from agt_lightning.aggregation.kernels.base import TopNKernel
from agt_lightning.aggregation.kernels.factors import Factor
from agt_lightning.arithmetic import multiply
from agt_lightning.interval import Interval
from agt_lightning.memory import chunks


class TorchKernel(TopNKernel):
    """Selection by `torch.topk`.

    Example:
        >>> import torch
        >>> TorchKernel().sums(torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, -3.0]]), n=2)
        tensor([5., 0.])
    """

    tile: ClassVar[int] = 2**26
    """Bytes of one tensor of gains: few large kernels are faster on a GPU than many small ones."""

    @override
    def sums(self, gains: Tensor, n: int) -> Tensor:
        positive = gains.clamp(min=0)
        if n >= gains.shape[1]:
            return positive.sum(dim=1)
        return positive.topk(n, dim=1, sorted=False).values.sum(dim=1)  # NaN counts as the largest number

    @override
    def block_sums(self, outputs: Factor, inputs: Factor, n: int, up: Tensor, down: Tensor) -> None:
        row_bytes = inputs.clean.lower.numel() * up.element_size()
        for rows in chunks(len(up), max(1, row_bytes), self.tile):
            clean, poisoned = (
                _products(d[rows], z) for d, z in ((outputs.clean, inputs.clean), (outputs.poisoned, inputs.poisoned))
            )
            up[rows] = self.sums(poisoned.upper - clean.upper, n).reshape(up[rows].shape)
            down[rows] = self.sums(clean.lower - poisoned.lower, n).reshape(down[rows].shape)


def _products(outputs: Interval, inputs: Interval) -> Interval:
    """Return bounds on the products of all outputs and inputs, (o · k, m)."""
    product = multiply(outputs.rearranged(lambda d: d[:, None]), inputs.rearranged(lambda z: z[None]))
    return product.rearranged(lambda bound: bound.flatten(0, 1))
