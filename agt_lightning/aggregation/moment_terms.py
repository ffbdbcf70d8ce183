"""Bounds on the gains of a weight matrix by products of nonnegative numbers.

They are derived in docs/theory.md, eq. (4.5) to (4.7).

For per-sample gradients ``δ_i = Σ_t d_it ⊗ z_it``, with t the positions at which the weight is used, the gain
``g_i = w_i (δ̃_U,i - δ_U,i)`` of each element satisfies

    g_i <= Σ_t (α_it x_it + β_it y_it),    α, β, x, y >= 0.

α is the increase of the output gradient and β its magnitude, both of the output's size; x is the magnitude of the input
and y its increase, both of the input's size.

α and β have two columns for each output unit: first of gains of the upper bound, then of the lower bound.

Axis letters: ``m`` poisonable samples, ``t`` positions, ``o`` outputs, ``k`` inputs; rows are samples and positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.gradients import Factors
from agt_lightning.interval import Interval
from agt_lightning.memory import chunks

_CACHED = 2**20
"""Bytes of the factors of one chunk of samples: their powers should stay in the caches."""

_NARROW = 2.0**-10
"""Inputs whose widths are at most this share of their magnitudes, in sum, are treated as points by one term for two."""

ChunkOfFactors = tuple[Interval, Interval, Interval, Interval]
"""Output gradients d (weighted) on clean data and under poison, then inputs z on clean data and under poison."""


@dataclass(frozen=True)
class Term:
    """A summand ``α x + β y`` of the gains of some rows.

    Args:
        alpha: α, the increase of the output gradient, (rows, 2 o).
        beta: β, the magnitude of the poisoned output gradient, (rows, 2 o).
        x: magnitude of the clean input, (rows, columns).
        y: increase of the input, (rows, columns); None if the adversary changes no input.
    """

    alpha: Tensor
    beta: Tensor
    x: Tensor
    y: Tensor | None


@dataclass(frozen=True)
class FactorRanges:
    """The ranges of the factors over all samples, which decide which inequality of the theory applies.

    Args:
        has_negative_inputs: whether some input can be negative, on clean data or under poison.
        has_narrow_inputs: whether the inputs of clean data are points, or nearly so.
        changes_inputs: whether the adversary can move some input out of its clean bounds.
        largest_input: an upper bound on all x and y, positive.
        largest_output: an upper bound on α and β of each unit, (o,).
    """

    has_negative_inputs: bool
    has_narrow_inputs: bool
    changes_inputs: bool
    largest_input: float
    largest_output: Tensor


@dataclass(frozen=True)
class FactoredGains:
    """The gains of one weight matrix, bounded by sums of `Term`.

    Args:
        clean: factors on clean data, of all samples.
        poisoned: factors under poison, of the poisonable samples.
        weights: w_i of the poisonable samples, (m,), float64.
        poisonable: positions of the poisonable samples in ``clean``, (m,); None means all.
    """

    clean: Factors
    poisoned: Factors
    weights: Tensor
    poisonable: Tensor | None

    @property
    def positions(self) -> int:
        """Number of positions at which the weight is used: 1 for a linear layer of vectors."""
        return self.poisoned.outputs.shape[1]

    @property
    def rows(self) -> int:
        """Number of poisonable samples times number of positions."""
        return self.poisoned.outputs.shape[0] * self.positions

    def columns(self, ranges: FactorRanges) -> int:
        """Return the number of columns of x and y: k, or 2 k if positive and negative inputs are kept apart."""
        return self._inputs * (2 if ranges.has_negative_inputs else 1)

    @property
    def _inputs(self) -> int:
        return self.poisoned.inputs(slice(0, 1)).shape[2]

    def ranges(self) -> FactorRanges:
        """Compute the ranges of all factors, in one pass over the samples."""
        smallest, largest, width, size, changes = math.inf, 0.0, 0.0, 0.0, False
        outputs = self.weights.new_zeros(self.poisoned.outputs.shape[2])
        for d, d_poisoned, z, z_poisoned in self.chunks():
            width += 0.0 if z.is_point else float(z.width.sum())
            size += float(z.upper.sum())
            differ = not _is_same_memory(z, z_poisoned)
            for inputs in (z, z_poisoned) if differ else (z,):
                smallest = min(smallest, float(inputs.lower.min()))
                largest = max(largest, float(inputs.upper.max()))
            changes = changes or (differ and bool(((z_poisoned.upper > z.upper) | (z_poisoned.lower < z.lower)).any()))
            for bounds in (d, d_poisoned):
                for magnitude in (bounds.upper.amax(dim=0), -bounds.lower.amin(dim=0)):
                    torch.maximum(outputs, magnitude, out=outputs)
        largest_input = 2 * max(largest, -smallest)  # a difference is at most twice as large as the larger magnitude
        return FactorRanges(not smallest >= 0, width <= _NARROW * size, changes, largest_input or 1.0, 2 * outputs)

    def terms(self, ranges: FactorRanges) -> Iterator[tuple[Term, ...]]:
        """Yield the summands of one chunk of samples after another."""
        for d, d_poisoned, z, z_poisoned in self.chunks():
            alpha = torch.cat(_outward_changes(d, d_poisoned), dim=1)
            y_up, y_down = _outward_changes(z, z_poisoned) if ranges.changes_inputs else (None, None)
            if ranges.has_negative_inputs:
                beta = d_poisoned.magnitude.repeat(1, 2)
                yield (Term(alpha, beta, *_split_by_sign(z, _maximum(y_up, y_down))),)
            elif ranges.has_narrow_inputs:
                beta = torch.cat([d_poisoned.upper.abs(), d_poisoned.lower.abs()], dim=1)
                yield (Term(alpha, beta, z.upper, _maximum(y_up, y_down)),)
            else:
                ends = torch.cat([d_poisoned.upper, -d_poisoned.lower], dim=1)
                positive = ends >= 0
                yield (
                    Term(alpha * positive, ends.clamp(min=0), z.upper, y_up),
                    Term(alpha * ~positive, (-ends).clamp_(min=0), z.lower, y_down),
                )

    def alpha_of_some(self, rows: int) -> Tensor:
        """Return α of about ``rows`` rows, of samples at equal distances, (rows, 2 o)."""
        samples = self.poisoned.outputs.shape[0]
        stride = max(1, samples // max(1, rows // self.positions))
        indices = torch.arange(0, samples, stride, device=self.weights.device)
        return torch.cat(_outward_changes(*self._outputs(indices)), dim=1)

    def chunks(self) -> Iterator[ChunkOfFactors]:
        """Yield factors of some poisonable samples at a time, float64, each (rows, units)."""
        samples, positions, units = self.poisoned.outputs.shape
        for chunk in chunks(samples, 8 * positions * max(2 * units, self._inputs), _CACHED):
            z = self.clean.inputs(chunk if self.poisonable is None else self.poisonable[chunk])
            yield *self._outputs(chunk), _rows(z), _rows(self.poisoned.inputs(chunk))

    def _outputs(self, indices: slice | Tensor) -> tuple[Interval, Interval]:
        clean = self.clean.outputs[indices if self.poisonable is None else self.poisonable[indices]]
        weights = self.weights[indices].repeat_interleave(self.positions)[:, None]
        return _weighted(_rows(clean), weights), _weighted(_rows(self.poisoned.outputs[indices]), weights)

    def joined_signs(
        self, sums: Tensor, ranges: FactorRanges, join: Callable[[Tensor, Tensor], Tensor] = torch.add
    ) -> Tensor:
        """Join the columns of positive and of negative inputs.

        Negative inputs exchange the bounds: gains of the upper bound have the lower bound's α as the factor of z⁻.

        Args:
            sums: of products of α and x, or of β and y, (2 o, columns).
            ranges: of the factors.
            join: of the two values that belong to one element.

        Returns:
            Upper bounds' values, then lower bounds', (2, o, k).
        """
        by_bound: Tensor = sums.unflatten(0, (2, -1))
        if not ranges.has_negative_inputs:
            return by_bound
        positive, negative = by_bound.chunk(2, dim=2)
        return join(positive, negative.flip(0))


def _outward_changes(clean: Interval, poisoned: Interval) -> tuple[Tensor, Tensor]:
    """Return ``(ũ - u)⁺`` and ``(l - l̃)⁺``."""
    return (poisoned.upper - clean.upper).clamp_(min=0), (clean.lower - poisoned.lower).clamp_(min=0)


def _split_by_sign(z: Interval, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return x and y for positive, then for negative inputs; an input of either sign is counted in both."""
    x = torch.cat([z.upper.clamp(min=0), (-z.lower).clamp_(min=0)], dim=1)
    if y is None:
        return x, None
    return x, torch.cat([y * (z.upper >= 0), y * (z.lower < 0)], dim=1)


def _maximum(up: Tensor | None, down: Tensor | None) -> Tensor | None:
    return None if up is None or down is None else torch.maximum(up, down)


def _is_same_memory(a: Interval, b: Interval) -> bool:
    return a.shape == b.shape and a.lower.data_ptr() == b.lower.data_ptr() and a.upper.data_ptr() == b.upper.data_ptr()


def _rows(factor: Interval) -> Interval:
    """Return samples and positions as rows, in float64."""
    return factor.mapped(lambda bound: bound.double().flatten(0, 1))


def _weighted(outputs: Interval, weights: Tensor) -> Interval:
    return outputs.mapped(lambda bound: bound * weights)
