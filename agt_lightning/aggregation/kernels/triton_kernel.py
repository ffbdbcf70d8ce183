"""The kernel for CUDA devices in Triton; never run on one so far, so it is used only where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.aggregation.kernels.base import TopNKernel
from agt_lightning.aggregation.kernels.factors import Factor

Kind = Literal["stored", "shared inputs", "products"]
"""What gains are made of, as `agt_lightning.aggregation.kernels.triton_program` names it."""


@dataclass(frozen=True)
class TritonKernel(TopNKernel):
    """Sums by thresholds on gains that are formed on the fly (`agt_lightning.aggregation.kernels.triton_program`).

    Triton comes with builds of torch for CUDA. On a CPU, its interpreter runs the same program, slowly, if
    ``TRITON_INTERPRET=1`` is set before the first sum.

    Args:
        outputs: that a program takes together; this and the next two are powers of two.
        inputs: the same of inputs.
        samples: the same of samples.
        warps: of a program.

    Example:
        >>> from agt_lightning.aggregation.kernels import kernel_for, trial_of
        >>> with trial_of(TritonKernel(), torch.device("cuda")):
        ...     kernel_for(torch.device("cuda"))
        TritonKernel(outputs=4, inputs=4, samples=32, warps=4)
    """

    outputs: int = 4
    inputs: int = 4
    samples: int = 32
    warps: int = 4

    def tile(self, outputs: int, inputs: int) -> tuple[int, int, int]:
        """Return what a program takes together of a small layer: fewer units, and more samples for them.

        Example:
            >>> TritonKernel().tile(100, 50), TritonKernel().tile(1, 3)
            ((4, 4, 32), (1, 4, 128))
        """
        o, k = (
            min(most, 1 << (count - 1).bit_length()) for most, count in ((self.outputs, outputs), (self.inputs, inputs))
        )
        return o, k, self.samples * self.outputs * self.inputs // (o * k)

    @override
    def sums(self, gains: Tensor, n: int) -> Tensor:
        gains = gains.contiguous()
        sums = gains.new_zeros(1, len(gains), 1)
        self._write("stored", gains, gains, n, sums)
        return sums.reshape(-1)

    @override
    def block_sums(self, outputs: Factor, inputs: Factor, n: int, up: Tensor, down: Tensor) -> None:
        sums = up.new_zeros(2, *up.shape)
        if inputs.shared_points is not None:
            above = outputs.poisoned.upper - outputs.clean.upper
            below = outputs.clean.lower - outputs.poisoned.lower
            kind: Kind = "shared inputs"
            first, second = torch.stack([above, below]), inputs.shared_points.contiguous()
        else:
            kind, first, second = "products", _ends(outputs), _ends(inputs)
        self._write(kind, first, second, n, sums)
        for bound, found in zip((up, down), sums + _zero_if_finite(first) + _zero_if_finite(second), strict=True):
            bound.copy_(found)

    def _write(self, kind: Kind, first: Tensor, second: Tensor, n: int, sums: Tensor) -> None:
        """Write the sums of n gains of this kind, (sides, o, k), which are zero before."""
        from agt_lightning.aggregation.kernels.triton_program import threshold_sums  # builds of torch can lack Triton

        sides, outputs, inputs = sums.shape
        samples = first.shape[-1]
        if n == 0 or samples == 0:
            return
        tile = self.tile(outputs, inputs)
        grid = (-(-outputs // tile[0]), -(-inputs // tile[1]), sides)
        sizes = (outputs, inputs, samples, min(n, samples))
        threshold_sums[grid](first, second, sums, *sizes, kind, *tile, num_warps=self.warps)


def _zero_if_finite(factor: Tensor) -> Tensor:
    """Return zero, or NaN if an entry is not finite: programs take maxima of products, which can lose NaN."""
    return sum(0 * end for end in factor.aminmax()) if factor.numel() else factor.new_zeros(())  # type: ignore[return-value]


def _ends(factor: Factor) -> Tensor:
    """Return the ends of clean and of poisoned intervals, (4, units, m)."""
    return torch.stack([factor.clean.lower, factor.clean.upper, factor.poisoned.lower, factor.poisoned.upper])
