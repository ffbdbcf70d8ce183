"""What a kernel computes: sums of the n largest gains, of gains that are stored or that are products of factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from agt_lightning.aggregation.kernels.factors import Factor, parts_of, ranges, units_at_once
from agt_lightning.aggregation.weighted_sums import SampleSet
from agt_lightning.gradients import FactoredGradient, OuterProduct


@dataclass(frozen=True)
class OuterGains:
    """The gains of a weight matrix, ``up = Ũ - U`` and ``down = L - L̃`` of the products ``w d z``, sample by sample.

    Args:
        clean: gradients of all samples, part by part, with one position per sample.
        poisoned: those of the poisonable samples, part by part.
        samples: weights and poisonable samples.
    """

    clean: Sequence[OuterProduct]
    poisoned: Sequence[OuterProduct]
    samples: SampleSet

    @classmethod
    def between(cls, clean: FactoredGradient, poisoned: FactoredGradient, samples: SampleSet) -> OuterGains | None:
        """Return the gains of two gradients; None unless both are outer products with one position per sample."""
        inner, outer = list(parts_of(clean)), list(parts_of(poisoned))
        if not all(isinstance(part, OuterProduct) and part.positions == 1 for part in (*inner, *outer)):
            return None
        return cls(inner, outer, samples)  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight, (o, k)."""
        outputs, inputs = self.clean[0].shape
        return outputs, inputs

    def blocks(self) -> Iterator[tuple[slice, slice, Factor, Factor]]:
        """Yield the factors of some outputs and inputs, which together are all: their places, w d, and z."""
        outputs, inputs = self.shape
        size = units_at_once(self.samples.poisonable_count)
        d: Factor | None = None
        for columns in ranges(inputs, size):
            z = Factor.of([p.inputs for p in self.clean], [p.inputs for p in self.poisoned], columns, self.samples)
            for rows in ranges(outputs, size):
                if d is None or outputs > size:
                    d = self._outputs(rows)
                yield rows, columns, d, z

    def _outputs(self, rows: slice) -> Factor:
        clean, poisoned = [part.outputs for part in self.clean], [part.outputs for part in self.poisoned]
        return Factor.of(clean, poisoned, rows, self.samples, weighted=True)


class TopNKernel(ABC):
    """``SEMax_n``: the largest sum of at most n gains, for each element of a parameter. Negative gains never count.

    A sum is exact up to its own rounding, that of at most n additions in any order. NaN among the gains, or among the
    factors that they are made of, makes a sum NaN.
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
        return up, down

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
