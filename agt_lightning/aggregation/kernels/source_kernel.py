"""The kernel for sums over sources: the gains of a source's samples are added up before the largest are taken."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from agt_lightning.aggregation.kernels.base import TopNKernel
from agt_lightning.aggregation.kernels.torch_kernel import TorchKernel


class SourceKernel(TorchKernel):
    """Sums of the gains of the n sources with the largest ones. Negative gains of samples never count.

    Gains that are products of factors are stored for a few elements at a time, since each is needed only once.

    Args:
        membership: ones where a sample belongs to a source, else zeros, (m, sources).
        chosen: the kernel that takes the largest sums of sources.

    Example:
        >>> import torch
        >>> kernel = SourceKernel(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), TorchKernel())
        >>> kernel.sums(torch.tensor([[3.0, 2.0, 2.0], [3.0, 2.0, -2.0]]), n=1)
        tensor([4., 3.])
    """

    tile: ClassVar[int] = 2**22

    def __init__(self, membership: Tensor, chosen: TopNKernel) -> None:
        self._membership = membership
        self._chosen = chosen

    @override
    def sums(self, gains: Tensor, n: int) -> Tensor:
        return self._chosen.sums(gains.clamp(min=0) @ self._membership.to(gains.dtype), n)
