"""The gain of poisoning one sample, bounded by sums of products of nonnegative factors.

For a weight matrix with ``δ_i = Σ_t d_it ⊗ z_it`` the gain ``g_i = w_i (δ̃_U,i - δ_U,i)`` of one element is at most

    g_i <= Σ_t (α_it x_it + β_it y_it),    α, β, x, y >= 0,

with α and β of the output's size and x and y of the input's: the output gradient moves by α at an input of size x, and
the input by y under an output gradient of size β. Derived in docs/theory.md, eq. (4.5) to (4.7).

Columns of α and β are the output's units twice: for gains of the upper bound, then for those of the lower one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.gradients import Factors
from agt_lightning.interval import Interval

_CHUNK = 2**20
"""Bytes of one chunk of factors: their powers should stay in the caches."""

Chunk = tuple[Interval, Interval, Interval, Interval]
"""Output gradients, then inputs, of some samples, each clean and poisoned; (b t, units)."""


@dataclass(frozen=True)
class Term:
    """One summand ``α x + β y`` of the gains of some samples; rows are samples and positions.

    Args:
        alpha: α, (rows, 2 o): by how much the output gradient moves.
        beta: β, (rows, 2 o): magnitude of the poisoned output gradient.
        x: (rows, k): magnitude of the clean input.
        y: (rows, k): by how much the input moves; None if no input does.
    """

    alpha: Tensor
    beta: Tensor
    x: Tensor
    y: Tensor | None


@dataclass(frozen=True)
class FactorRanges:
    """The ranges of the factors over all samples, found in one pass before sums are taken chunk by chunk.

    Args:
        signed: whether some inputs can be negative.
        points: whether the inputs of clean data are points.
        inputs_move: whether the adversary moves some input.
        inputs: at least as large as any x and y.
        outputs: at least as large as any α and β of each unit, (o,).
    """

    signed: bool
    points: bool
    inputs_move: bool
    inputs: float
    outputs: Tensor


@dataclass(frozen=True)
class Gains:
    """Bounds on the gains of one weight matrix, as sums of `Term`.

    Args:
        clean: factors for the data as it is.
        poisoned: factors of the poisonable samples under the adversary.
        weights: w of the poisonable samples, (m,), in double precision.
        poisonable: their positions; None means all.
    """

    clean: Factors
    poisoned: Factors
    weights: Tensor
    poisonable: Tensor | None

    @property
    def positions(self) -> int:
        """Number of positions at which one weight is used."""
        return self.poisoned.outputs.shape[1]

    @property
    def rows(self) -> int:
        """Number of poisonable samples times positions."""
        return self.poisoned.outputs.shape[0] * self.positions

    def columns(self, ranges: FactorRanges) -> int:
        """Return the number of columns of x and y: inputs, once for each sign."""
        return self.poisoned.inputs(slice(0, 1)).shape[2] * (2 if ranges.signed else 1)

    def ranges(self) -> FactorRanges:
        """Return the ranges of the factors over all samples."""
        smallest, largest, points, inputs_move = math.inf, 0.0, True, False
        outputs = self.weights.new_zeros(self.poisoned.outputs.shape[2])
        for d, d_poisoned, z, z_poisoned in self.chunks():
            points = points and z.is_point
            moved = not _same(z, z_poisoned)
            for inputs in (z, z_poisoned) if moved else (z,):
                smallest = min(smallest, float(inputs.lower.min()))
                largest = max(largest, float(inputs.upper.max()))
            inputs_move = inputs_move or (
                moved and bool(((z_poisoned.upper > z.upper) | (z_poisoned.lower < z.lower)).any())
            )
            for bounds in (d, d_poisoned):
                for end in (bounds.upper.amax(dim=0), -bounds.lower.amin(dim=0)):
                    torch.maximum(outputs, end, out=outputs)
        inputs_scale = 2 * max(largest, -smallest)  # a change is at most twice as large as the larger end
        return FactorRanges(not smallest >= 0, points, inputs_move, inputs_scale or 1.0, 2 * outputs)

    def terms(self, ranges: FactorRanges) -> Iterator[tuple[Term, ...]]:
        """Yield the summands of the gains, one chunk of samples at a time."""
        for d, d_poisoned, z, z_poisoned in self.chunks():
            up, down = _outward_changes(d, d_poisoned)
            alpha = torch.cat([up, down], dim=1)
            y_up, y_down = _outward_changes(z, z_poisoned) if ranges.inputs_move else (None, None)
            if ranges.signed:
                beta = d_poisoned.magnitude.repeat(1, 2)
                yield (Term(alpha, beta, *_by_input_sign(z, _larger(y_up, y_down))),)
            elif ranges.points:
                beta = torch.cat([d_poisoned.upper.abs(), d_poisoned.lower.abs()], dim=1)
                yield (Term(alpha, beta, z.upper, _larger(y_up, y_down)),)
            else:
                ends = torch.cat([d_poisoned.upper, -d_poisoned.lower], dim=1)
                rising = ends >= 0
                yield (
                    Term(alpha * rising, ends.clamp(min=0), z.upper, y_up),
                    Term(alpha * ~rising, (-ends).clamp_(min=0), z.lower, y_down),
                )

    def sampled_alpha(self, rows: int) -> Tensor:
        """Return α of about that many rows, spread over all samples, (rows, 2 o)."""
        stride = max(1, self.poisoned.outputs.shape[0] // max(1, rows // self.positions))
        every = torch.arange(0, self.poisoned.outputs.shape[0], stride, device=self.weights.device)
        d, d_poisoned = self._outputs(every)
        return torch.cat(_outward_changes(d, d_poisoned), dim=1)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the factors of some poisonable samples at a time, in double precision; outputs times weights."""
        samples, positions, units = self.poisoned.outputs.shape
        size = max(1, _CHUNK // (8 * positions * max(2 * units, self.poisoned.inputs(slice(0, 1)).shape[2])))
        for start in range(0, samples, size):
            chunk = slice(start, min(start + size, samples))
            z = self.clean.inputs(chunk if self.poisonable is None else self.poisonable[chunk])
            yield *self._outputs(chunk), _as_rows(z), _as_rows(self.poisoned.inputs(chunk))

    def _outputs(self, rows: slice | Tensor) -> tuple[Interval, Interval]:
        clean = self.clean.outputs[rows if self.poisonable is None else self.poisonable[rows]]
        weights = self.weights[rows].repeat_interleave(self.positions)[:, None]
        return tuple(_weighted(_as_rows(d), weights) for d in (clean, self.poisoned.outputs[rows]))  # type: ignore[return-value]

    def folded(self, sums: Tensor, ranges: FactorRanges, *, largest: bool = False) -> Tensor:
        """Return sums (2 o, columns of x) as upper and lower gains, (2, o, k); negative inputs exchange the two.

        Args:
            sums: of products of α and x, or β and y.
            ranges: of the factors of these samples.
            largest: combine positive and negative inputs by their maximum instead of their sum.
        """
        by_end: Tensor = sums.unflatten(0, (2, -1))
        if not ranges.signed:
            return by_end
        positive, negative = by_end.chunk(2, dim=2)
        return torch.maximum(positive, negative.flip(0)) if largest else positive + negative.flip(0)


def _outward_changes(clean: Interval, poisoned: Interval) -> tuple[Tensor, Tensor]:
    """Return by how much the upper bound moves up, and the lower one down."""
    return (poisoned.upper - clean.upper).clamp_(min=0), (clean.lower - poisoned.lower).clamp_(min=0)


def _by_input_sign(z: Interval, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return x and y of positive inputs, then of negative ones; an input of either sign stands in both."""
    x = torch.cat([z.upper.clamp(min=0), (-z.lower).clamp_(min=0)], dim=1)
    if y is None:
        return x, None
    return x, torch.cat([y * (z.upper >= 0), y * (z.lower < 0)], dim=1)


def _larger(up: Tensor | None, down: Tensor | None) -> Tensor | None:
    return None if up is None or down is None else torch.maximum(up, down)


def _same(a: Interval, b: Interval) -> bool:
    """Return whether both are the same memory."""
    return a.shape == b.shape and a.lower.data_ptr() == b.lower.data_ptr() and a.upper.data_ptr() == b.upper.data_ptr()


def _as_rows(factor: Interval) -> Interval:
    """Return samples and positions as rows, in double precision."""
    return factor.mapped(lambda bound: bound.double().flatten(0, 1))


def _weighted(outputs: Interval, weights: Tensor) -> Interval:
    return outputs.mapped(lambda bound: bound * weights)
