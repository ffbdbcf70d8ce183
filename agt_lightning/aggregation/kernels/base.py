"""What a kernel computes: sums of the n largest gains, of gains that are stored or that are products of factors."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from agt_lightning.aggregation.kernels.factors import Factor
from agt_lightning.aggregation.kernels.outer_gains import OuterGains


class TopNKernel(ABC):
    """``SEMax_n``: the largest sum of at most n gains, for each element of a parameter. Negative gains never count.

    A sum is exact up to its own rounding, at most n + 4 roundings of a nonnegative term on its way. NaN among the
    gains, or among the factors that they are made of, makes a sum NaN.
    """

    @abstractmethod
    def sums(self, gains: Tensor, n: int) -> Tensor:
        """Return the sums of the n largest gains of each row.

        Args:
            gains: (e, m).
            n: largest number of gains in a sum, at least 0.

        Returns:
            (e,)
        """

    def outer_sums(self, gains: OuterGains, n: int) -> tuple[Tensor, Tensor]:
        """Return the sums of the n largest gains of both bounds, without storing gains of more than a few elements.

        Args:
            gains: their factors.
            n: largest number of gains in a sum, at least 0.

        Returns:
            For the upper bound and for the lower one, each (o, k).
        """
        up, down = (gains.clean[0].outputs.lower.new_empty(gains.shape) for _ in range(2))
        for rows, columns, outputs, inputs in gains.blocks():
            self.block_sums(outputs, inputs, n, up[rows, columns], down[rows, columns])
        weight = gains.common_weight
        return (up, down) if weight is None else (up.mul_(weight), down.mul_(weight))

    @abstractmethod
    def block_sums(self, outputs: Factor, inputs: Factor, n: int, up: Tensor, down: Tensor) -> None:
        """Write the sums of the n largest gains of both bounds for the products of some outputs and inputs.

        Args:
            outputs: w d of some units, (o, m).
            inputs: z of some units, (k, m).
            n: largest number of gains in a sum, at least 0.
            up: for the upper bound, (o, k), overwritten.
            down: for the lower bound, (o, k), overwritten.
        """
