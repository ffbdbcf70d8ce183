"""The kernel in plain torch, for every device: the definition that other kernels are tested against."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from agt_lightning.aggregation.kernels.factors import Factor
from agt_lightning.aggregation.kernels.interface import TopNKernel
from agt_lightning.arithmetic import multiply


class TorchKernel(TopNKernel):
    """Selection by `torch.topk`.

    Example:
        >>> import torch
        >>> TorchKernel().sums(torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, -3.0]]), n=2)
        tensor([5., 0.])
    """

    @override
    def sums(self, gains: Tensor, n: int) -> Tensor:
        positive = gains.clamp(min=0)
        if n >= gains.shape[1]:
            return positive.sum(dim=1)
        return positive.topk(n, dim=1, sorted=False).values.sum(dim=1)  # NaN counts as the largest number

    @override
    def block_sums(self, outputs: Factor, inputs: Factor, n: int, up: Tensor, down: Tensor) -> None:
        for row in range(len(up)):
            clean, poisoned = (
                multiply(d[row : row + 1], z)
                for d, z in ((outputs.clean, inputs.clean), (outputs.poisoned, inputs.poisoned))
            )
            up[row] = self.sums(poisoned.upper - clean.upper, n)
            down[row] = self.sums(clean.lower - poisoned.lower, n)
