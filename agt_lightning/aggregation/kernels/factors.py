"""Factors of per-sample gradients with the samples last, as kernels read them: both passes, some units at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.aggregation.weighted_sums import SampleSet
from agt_lightning.gradients import FactoredGradient, Stacked, samples_last
from agt_lightning.interval import Interval
from agt_lightning.memory import place_of

_ENTRIES = 2**20
"""Entries of a factor that are put samples last together."""

_UNITS = 128
"""Units of a layer whose factors are put samples last together at most."""


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

    @classmethod
    def of(cls, clean: Sequence[Interval], poisoned: Sequence[Interval], units: slice, samples: SampleSet) -> Factor:
        """Return some units of a factor, which is given part by part.

        Args:
            clean: bounds of consecutive samples, (samples, 1, units) each.
            poisoned: those of poisonable samples.
            units: which.
            samples: which of them are poisonable.
        """
        inner = _units_first(clean, units, samples.poisonable)
        if samples.poisonable is None and all(map(_same_memory, clean, poisoned)):
            return cls(inner, inner, same=True)
        outer = _units_first(poisoned, units, None)
        same = torch.equal(inner.lower, outer.lower) and torch.equal(inner.upper, outer.upper)
        return cls(inner, inner if same else outer, same)

    def weighted(self, weights: Tensor) -> Factor:
        """Return the factor times the weights of the samples, (m,)."""
        clean = self.clean.mapped(lambda bound: bound * weights)
        return Factor(clean, clean if self.same else self.poisoned.mapped(lambda bound: bound * weights), self.same)


def units_at_once(samples: int) -> int:
    """Return how many units of a factor of so many samples are put samples last together."""
    return max(1, min(_UNITS, _ENTRIES // max(1, samples)))


def ranges(count: int, size: int) -> Iterator[slice]:
    """Yield consecutive ranges of at most so many items."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _same_memory(first: Interval, second: Interval) -> bool:
    """Return whether two bounds are the same tensors, so that there is no need to compare their numbers."""
    pairs = ((first.lower, second.lower), (first.upper, second.upper))
    return all(place_of(a) == place_of(b) for a, b in pairs)


def parts_of(gradient: FactoredGradient) -> Iterator[FactoredGradient]:
    """Yield the gradients of consecutive samples that a gradient consists of."""
    if not isinstance(gradient, Stacked):
        yield gradient
        return
    for part in gradient.parts:
        yield from parts_of(part)


def _units_first(parts: Sequence[Interval], units: slice, rows: Tensor | None) -> Interval:
    """Return some units of a factor, samples last.

    Args:
        parts: bounds of consecutive samples, (samples, 1, units).
        units: which.
        rows: positions of some of the samples; None means all.

    Returns:
        (units, m); a point if all parts are.
    """
    lower = samples_last([part.lower[:, 0, units] for part in parts], rows)
    if all(part.is_point for part in parts):
        return Interval.point(lower)
    return Interval.trusted(lower, samples_last([part.upper[:, 0, units] for part in parts], rows))
