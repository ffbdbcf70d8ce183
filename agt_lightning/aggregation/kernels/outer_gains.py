"""The gains of a weight matrix, by their factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
        """Yield the factors of some outputs and inputs, which together are all: their places, d, and z.

        Unless all weights are equal, to `common_weight`, d is multiplied by them.
        """
        outputs, inputs = self.shape
        size = units_at_once(self.samples.poisonable_count)
        d: Factor | None = None
        for columns in ranges(inputs, size):
            z = Factor.of([p.inputs for p in self.clean], [p.inputs for p in self.poisoned], columns, self.samples)
            for rows in ranges(outputs, size):
                if d is None or outputs > size:
                    d = self._outputs(rows)
                yield rows, columns, d, z

    @property
    def common_weight(self) -> float | None:
        """The weight of all samples; None if their weights differ."""
        return self.samples.common_weight

    def _outputs(self, rows: slice) -> Factor:
        clean, poisoned = [part.outputs for part in self.clean], [part.outputs for part in self.poisoned]
        d = Factor.of(clean, poisoned, rows, self.samples)
        if self.common_weight is not None:
            return d
        return d.weighted(self.samples.select(self.samples.weights).to(d.clean.dtype))
