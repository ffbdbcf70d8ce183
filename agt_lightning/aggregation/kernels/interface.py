"""What a kernel computes: sums of the n largest gains, of gains that are stored or that are products of factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.aggregation.weighted_sums import SampleSet
from agt_lightning.gradients import FactoredGradient, OuterProduct, Stacked, samples_last
from agt_lightning.interval import Interval

_ENTRIES = 2**20
"""Entries of a factor that are put samples last together, with the units of a layer they belong to."""

_UNITS = 128
"""Units of a layer whose factors are put samples last together at most: for each such group, others are read again."""


@dataclass(frozen=True)
class Factor:
    """One factor of a weight's gradients in both passes, for some units and all poisonable samples.

    Args:
        clean: bounds for the data as it is, (units, m).
        poisoned: bounds for poisoned samples, (units, m).
        same: whether both are the same.
    """

    clean: Interval
    poisoned: Interval
    same: bool

    @property
    def shared_points(self) -> Tensor | None:
        """The values, (units, m), if they are points and the same in both passes; None otherwise."""
        return self.clean.lower if self.same and self.clean.is_point else None


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
        inner, outer = list(_parts(clean)), list(_parts(poisoned))
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
        weights = self.samples.select(self.samples.weights)
        size = max(1, min(_UNITS, _ENTRIES // max(1, len(weights))))
        sources = [part.outputs for part in self.clean], [part.outputs for part in self.poisoned]
        d: Factor | None = None
        for columns in _ranges(inputs, size):
            z = self._factor([part.inputs for part in self.clean], [part.inputs for part in self.poisoned], columns)
            for rows in _ranges(outputs, size):
                if d is None or outputs > size:
                    d = self._factor(*sources, rows, weights)
                yield rows, columns, d, z

    def _factor(
        self, clean: Sequence[Interval], poisoned: Sequence[Interval], units: slice, weights: Tensor | None = None
    ) -> Factor:
        inner = _units_first(clean, units, self.samples.poisonable, weights)
        if all(map(_same_memory, clean, poisoned)):
            return Factor(inner, inner, same=True)
        outer = _units_first(poisoned, units, None, weights)
        same = torch.equal(inner.lower, outer.lower) and torch.equal(inner.upper, outer.upper)
        return Factor(inner, inner if same else outer, same)


def _same_memory(first: Interval, second: Interval) -> bool:
    """Return whether two bounds are the same tensors, so that there is no need to compare their numbers."""
    pairs = ((first.lower, second.lower), (first.upper, second.upper))
    return all(a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() for a, b in pairs)


def _parts(gradient: FactoredGradient) -> Iterator[FactoredGradient]:
    """Yield the gradients of consecutive samples that a gradient consists of."""
    if not isinstance(gradient, Stacked):
        yield gradient
        return
    for part in gradient.parts:
        yield from _parts(part)


def _ranges(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _units_first(parts: Sequence[Interval], units: slice, rows: Tensor | None, weights: Tensor | None) -> Interval:
    """Return some units of a factor, samples last.

    Args:
        parts: bounds of consecutive samples, (samples, 1, units).
        units: which.
        rows: positions of some of the samples, ascending; None means all.
        weights: of these; None means one.

    Returns:
        (units, m); a point if all parts are.
    """
    lower = samples_last([part.lower[:, 0, units] for part in parts], rows, weights)
    if all(part.is_point for part in parts):
        return Interval.point(lower)
    return Interval.trusted(lower, samples_last([part.upper[:, 0, units] for part in parts], rows, weights))


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
