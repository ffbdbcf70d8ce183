"""What poisoning a sample can add to a gradient, bounded by products of nonnegative numbers.

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
"""Outputs, then inputs, of some samples: as they are, and within reach; each (b t, units)."""


@dataclass(frozen=True)
class Term:
    """One summand ``α x + β y`` of the gains of some samples; rows are samples and positions.

    Args:
        rise: α, (rows, 2 o).
        reach: β, (rows, 2 o).
        size: x, (rows, k).
        shift: y, (rows, k); None if no input moves.
    """

    rise: Tensor
    reach: Tensor
    size: Tensor
    shift: Tensor | None


@dataclass(frozen=True)
class Extent:
    """What is known of all samples before they are looked at one chunk after another.

    Args:
        signed: whether some inputs can be negative.
        points: whether the inputs of clean data are known exactly.
        move: whether the adversary moves some input.
        inputs: at least as large as any x and y.
        outputs: at least as large as any α and β of each unit, (o,).
    """

    signed: bool
    points: bool
    move: bool
    inputs: float
    outputs: Tensor


@dataclass(frozen=True)
class Gains:
    """Bounds on the gains of one weight matrix, as sums of `Term`.

    Args:
        clean: factors for the data as it is.
        poisoned: factors within the adversary's reach, one sample per poisonable one.
        weights: w of the poisonable samples, (m,), in double precision.
        poisonable: their positions; None means all.
    """

    clean: Factors
    poisoned: Factors
    weights: Tensor
    poisonable: Tensor | None

    @property
    def positions(self) -> int:
        """Places at which one weight is used."""
        return self.poisoned.outputs.shape[1]

    @property
    def rows(self) -> int:
        """Poisonable samples times positions."""
        return self.poisoned.outputs.shape[0] * self.positions

    def columns(self, extent: Extent) -> int:
        """Columns of x and y: inputs, once for each sign."""
        return self.poisoned.inputs(slice(0, 1)).shape[2] * (2 if extent.signed else 1)

    def extent(self) -> Extent:
        """One look at all samples."""
        smallest, largest, points, move = math.inf, 0.0, True, False
        outputs = self.weights.new_zeros(self.poisoned.outputs.shape[2])
        for d, d_reach, z, z_reach in self.chunks():
            points = points and z.is_point
            moved = not _same(z, z_reach)
            for inputs in (z, z_reach) if moved else (z,):
                smallest = min(smallest, float(inputs.lower.min()))
                largest = max(largest, float(inputs.upper.max()))
            move = move or (moved and bool(((z_reach.upper > z.upper) | (z_reach.lower < z.lower)).any()))
            for bounds in (d, d_reach):
                for end in (bounds.upper.amax(dim=0), -bounds.lower.amin(dim=0)):
                    torch.maximum(outputs, end, out=outputs)
        inputs_scale = 2 * max(largest, -smallest)  # a change is at most twice as large as the larger end
        return Extent(not smallest >= 0, points, move, inputs_scale or 1.0, 2 * outputs)

    def terms(self, extent: Extent) -> Iterator[tuple[Term, ...]]:
        """The summands of each chunk of samples."""
        for d, d_reach, z, z_reach in self.chunks():
            up, down = _moves(d, d_reach)
            rise = torch.cat([up, down], dim=1)
            y_up, y_down = _moves(z, z_reach) if extent.move else (None, None)
            if extent.signed:
                reach = d_reach.magnitude.repeat(1, 2)
                yield (Term(rise, reach, *_by_input_sign(z, _larger(y_up, y_down))),)
            elif extent.points:
                reach = torch.cat([d_reach.upper.abs(), d_reach.lower.abs()], dim=1)
                yield (Term(rise, reach, z.upper, _larger(y_up, y_down)),)
            else:
                ends = torch.cat([d_reach.upper, -d_reach.lower], dim=1)
                rising = ends >= 0
                yield (
                    Term(rise * rising, ends.clamp(min=0), z.upper, y_up),
                    Term(rise * ~rising, (-ends).clamp_(min=0), z.lower, y_down),
                )

    def sample_of_rises(self, rows: int) -> Tensor:
        """α of about as many rows, spread over all samples, (rows, 2 o)."""
        stride = max(1, self.poisoned.outputs.shape[0] // max(1, rows // self.positions))
        every = torch.arange(0, self.poisoned.outputs.shape[0], stride, device=self.weights.device)
        d, d_reach = self._outputs(every)
        return torch.cat(_moves(d, d_reach), dim=1)

    def chunks(self) -> Iterator[Chunk]:
        """Factors of some poisonable samples at a time, in double precision; outputs times weights."""
        samples, positions, units = self.poisoned.outputs.shape
        size = max(1, _CHUNK // (8 * positions * max(2 * units, self.poisoned.inputs(slice(0, 1)).shape[2])))
        for start in range(0, samples, size):
            chunk = slice(start, min(start + size, samples))
            z = self.clean.inputs(chunk if self.poisonable is None else self.poisonable[chunk])
            yield *self._outputs(chunk), _flat(z), _flat(self.poisoned.inputs(chunk))

    def _outputs(self, rows: slice | Tensor) -> tuple[Interval, Interval]:
        clean = self.clean.outputs[rows if self.poisonable is None else self.poisonable[rows]]
        weights = self.weights[rows].repeat_interleave(self.positions)[:, None]
        return tuple(_weighted(_flat(d), weights) for d in (clean, self.poisoned.outputs[rows]))  # type: ignore[return-value]

    def folded(self, sums: Tensor, extent: Extent, *, largest: bool = False) -> Tensor:
        """From sums (2 o, columns of x) to upper and lower gains, (2, o, k): of negative inputs, each to the other.

        Args:
            sums: of products of α and x, or β and y.
            extent: of the samples.
            largest: combine positive and negative inputs by their maximum instead of their sum.
        """
        by_end: Tensor = sums.unflatten(0, (2, -1))
        if not extent.signed:
            return by_end
        positive, negative = by_end.chunk(2, dim=2)
        return torch.maximum(positive, negative.flip(0)) if largest else positive + negative.flip(0)


def _moves(before: Interval, after: Interval) -> tuple[Tensor, Tensor]:
    """How far the upper end moves up, and the lower one down."""
    return (after.upper - before.upper).clamp_(min=0), (before.lower - after.lower).clamp_(min=0)


def _by_input_sign(z: Interval, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Sizes and shifts of positive inputs, then of negative ones; an input of either sign stands in both."""
    size = torch.cat([z.upper.clamp(min=0), (-z.lower).clamp_(min=0)], dim=1)
    if shift is None:
        return size, None
    return size, torch.cat([shift * (z.upper >= 0), shift * (z.lower < 0)], dim=1)


def _larger(up: Tensor | None, down: Tensor | None) -> Tensor | None:
    return None if up is None or down is None else torch.maximum(up, down)


def _same(a: Interval, b: Interval) -> bool:
    """Whether both are the same memory."""
    return a.shape == b.shape and a.lower.data_ptr() == b.lower.data_ptr() and a.upper.data_ptr() == b.upper.data_ptr()


def _flat(factor: Interval) -> Interval:
    """Samples and positions as rows, in double precision."""
    lower = factor.lower.double().flatten(0, 1)
    return Interval.trusted(lower, lower if factor.is_point else factor.upper.double().flatten(0, 1))


def _weighted(outputs: Interval, weights: Tensor) -> Interval:
    lower = outputs.lower * weights
    return Interval.trusted(lower, lower if outputs.is_point else outputs.upper * weights)
