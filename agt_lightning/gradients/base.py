"""The interface of factored gradients: what the aggregation needs of the gradients of one parameter."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic.compiled import readable, transpose
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval

Leaf = Tensor | Interval
"""A tensor or interval that a gradient is made of, with the samples along its first axis."""

_BLOCK_BUDGET = 16 * 2**20
"""Bytes of one bound of a block that is expanded only to be summed."""


@dataclass(frozen=True)
class Factors:
    """The factors of ``δ_i = Σ_t d_it ⊗ z_it``, where the parameter is a matrix (o, k).

    Args:
        outputs: bounds on d, (b, t, o).
        inputs: maps the positions of some samples to bounds on their z, (samples, t, k).
    """

    outputs: Interval
    inputs: Callable[[Tensor], Interval]


class FactoredGradient(ABC):
    """Bounds ``[δ_L, δ_U]`` on the gradient of each sample with respect to one parameter tensor.

    The parameter's elements are numbered in memory order. They are expanded block by block, so memory does not grow
    with batch x parameters.

    As a pytree, a gradient is its `structure` and its `leaves`: gradients of one structure can be sent to other
    processes and stacked leaf by leaf.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """Number b of samples."""

    @property
    def elements(self) -> int:
        """Number e of elements of the parameter."""
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        """Elements per index of the first axis; a block holds whole rows, or lies in one."""
        return math.prod(self.shape[1:])

    @abstractmethod
    def block(self, start: int, stop: int) -> Interval:
        """Return per-sample bounds of some elements, samples last, as the sum of the n largest takes them.

        Args:
            start: first element.
            stop: element behind the last one; the range holds whole rows, or lies in one.

        Returns:
            Interval of shape (stop - start, b).
        """

    @abstractmethod
    def total(self, weights: Tensor) -> Interval | None:
        """Return exact bounds on ``Σ_i w_i δ_i`` by matrix products alone; None if that takes expanded blocks.

        Args:
            weights: (b,), nonnegative.
        """

    @abstractmethod
    def scale(self, weights: Tensor) -> float:
        """Return ``Σ_i w_i max |δ_i|`` or a little more, which rounding errors of the sum are relative to.

        Args:
            weights: (b,), nonnegative.
        """

    @abstractmethod
    def rounded(self, arithmetic: Arithmetic, roundings: int) -> FactoredGradient:
        """Return the gradient with one factor of each product widened, so that its sums cover rounding.

        A sum over samples in floating point, in any order, is the exact sum for factors that differ relatively by
        γ_k (docs/floats.md, eq. (1.3)).

        Args:
            arithmetic: of the run and of the bounds.
            roundings: number k of roundings from a factor to the sum.
        """

    @abstractmethod
    def nonzero(self) -> Tensor:
        """Return which elements some sample can move, of the parameter's shape; the gradient of all others is zero."""

    def dense(self, rows: slice) -> Interval:
        """Return bounds of all elements for a range of samples, ``(samples, *shape)``.

        Args:
            rows: the samples.
        """
        chosen = self if self.structure is None else self.with_leaves([leaf[rows] for leaf in self.leaves])
        block = chosen.block(0, self.elements)
        block = block.rearranged(lambda bound: bound[:, rows]) if self.structure is None else block
        return block.rearranged(lambda bound: bound.T.reshape(-1, *self.shape))

    @property
    def positions(self) -> int:
        """Number of products that one sample adds to an element when a sum over samples is taken."""
        return 1

    def factors(self) -> Factors | None:
        """Return the factors that the bounds are products of; None if there are none."""
        return None

    @property
    def structure(self) -> Hashable | None:
        """Everything but the leaves; None if the gradient cannot be split into leaves."""
        return None

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The tensors and intervals of the gradient, with the samples along the first axis."""
        return ()

    def with_leaves(self, leaves: Sequence[Leaf]) -> FactoredGradient:
        """Return the gradient of this structure with other leaves.

        Args:
            leaves: as many as `leaves`, of any number of samples.

        Raises:
            NotImplementedError: if `structure` is None.
        """
        raise NotImplementedError(f"`{type(self).__name__}` has no leaves.")

    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient | None:
        """Return the gradient of some elements of the parameter; None if it cannot be divided along this axis.

        Args:
            axis: axis of the parameter, as in `torch.Tensor.narrow`.
            start: first index.
            length: number of indices.
        """
        return None

    def square_sums(self) -> Interval:
        """Return bounds on the squared Euclidean norm of each sample's gradient over its box, (b,)."""
        rows = max(1, _BLOCK_BUDGET // max(1, self.row * self.samples * 8))
        blocks = [
            self.block(start, min(start + rows * self.row, self.elements))
            for start in range(0, self.elements, rows * self.row)
        ]
        lower = torch.stack([block.mignitude.square().sum(dim=0) for block in blocks]).sum(dim=0)
        upper = torch.stack([block.magnitude.square().sum(dim=0) for block in blocks]).sum(dim=0)
        return Interval.trusted(lower, upper, nonnegative=True)


def common_value(values: Tensor) -> float | None:
    """Return the number that all entries are; None if they differ.

    Example:
        >>> common_value(torch.ones(3)), common_value(torch.tensor([1.0, 2.0]))
        (1.0, None)
    """
    return float(values[0]) if len(values) and bool((values == values[0]).all()) else None


def is_nonzero(value: Interval) -> Tensor:
    """Return which entries can be other than zero, of the interval's shape."""
    nonzero = value.lower != 0
    return nonzero if value.is_point else nonzero | (value.upper != 0)


def rounded_factors(
    first: Interval, second: Interval, arithmetic: Arithmetic, roundings: int
) -> tuple[Interval, Interval]:
    """Return two factors, of which the one that is cheaper to widen covers rounding: no point beside an interval.

    Example:
        >>> ones = torch.ones(3, dtype=torch.float64)
        >>> box, point = Interval(0 * ones, ones), Interval.point(ones[:2])
        >>> rounded_factors(box, point, Arithmetic(torch.float32, torch.float64), 10)[1] is point
        True
    """
    alike = first.is_point == second.is_point
    if first.lower.numel() <= second.lower.numel() if alike else second.is_point:
        return arithmetic.outward(first, roundings), second
    return first, arithmetic.outward(second, roundings)


def samples_last(parts: Sequence[Tensor], rows: Tensor | None = None) -> Tensor:
    """Return matrices of consecutive samples as one with the samples along its last axis, contiguous.

    Args:
        parts: (samples, p) each, at least one.
        rows: positions of some of all samples, (m,); None means all.

    Returns:
        (p, m), which may share memory with the only part.

    Example:
        >>> samples_last([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])], torch.tensor([0, 2]))
        tensor([[1., 5.],
                [2., 6.]])
    """
    if len(parts) == 1 and parts[0].stride(0) == 1:  # samples are last in memory already
        return parts[0].T.contiguous() if rows is None else parts[0].T.index_select(1, rows)
    if any(part.requires_grad for part in parts):  # compiled loops have no derivatives
        return torch.cat(list(_chosen(parts, rows))).T.contiguous()
    count = sum(len(part) for part in parts) if rows is None else len(rows)
    result = parts[0].new_empty(parts[0].shape[1], count)
    place = 0
    for part in _chosen(parts, rows):
        places = slice(place, place + len(part))
        write_transposed(part, result[:, places])
        place = places.stop
    return result


def write_transposed(source: Tensor, target: Tensor) -> None:
    """Write the transpose of a matrix.

    Args:
        source: (b, p).
        target: (p, b), overwritten.
    """
    if readable(source, target) and not source.requires_grad:
        transpose(source.numpy(), target.numpy())
    else:
        target.copy_(source.T)


def _chosen(parts: Sequence[Tensor], rows: Tensor | None) -> Iterator[Tensor]:
    """Yield some rows of the matrices, which are one below the other."""
    if rows is None:
        yield from parts
        return
    if bool((rows[1:] < rows[:-1]).any()):
        yield torch.cat(list(parts))[rows]
        return
    first = 0
    for part in parts:
        yield part[rows[(rows >= first) & (rows < first + len(part))] - first]
        first += len(part)
