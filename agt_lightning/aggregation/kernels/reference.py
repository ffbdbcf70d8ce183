"""The kernel in plain torch, for every device: the definition that other kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.aggregation.kernels.interface import OuterGains, TopNKernel
from agt_lightning.arithmetic import multiply
from agt_lightning.interval import Interval
from agt_lightning.memory import chunks

_TILE = 2**25
"""Bytes of one tensor of gains."""


class TorchKernel(TopNKernel):
    """Selection by `torch.topk`.

    Example:
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
    def outer_sums(self, gains: OuterGains, n: int) -> tuple[Tensor, Tensor]:
        rows, columns = gains.shape
        row_bytes = columns * gains.clean_outputs.lower.shape[1] * gains.clean_outputs.lower.element_size()
        up, down = [], []
        for part in chunks(rows, row_bytes, _TILE):
            clean = _products(gains.clean_outputs, gains.clean_inputs, part)
            poisoned = _products(gains.poisoned_outputs, gains.poisoned_inputs, part)
            up.append(self.sums(poisoned.upper - clean.upper, n))
            down.append(self.sums(clean.lower - poisoned.lower, n))
        return torch.cat(up).reshape(rows, columns), torch.cat(down).reshape(rows, columns)


def _products(outputs: Interval, inputs: Interval, rows: slice) -> Interval:
    """Bounds on the products of some outputs with all inputs, (rows · k, m)."""
    product = multiply(outputs[rows].rearranged(lambda d: d[:, None]), inputs.rearranged(lambda z: z[None]))
    return product.rearranged(lambda bound: bound.flatten(0, 1))
