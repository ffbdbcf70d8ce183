"""Gradients of tables, which are zero except in the rows that a sample reads.

Axis letters: ``b`` samples, ``t`` positions, ``v`` rows of the table, ``d`` its columns.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import multiply
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.gradients.base import FactoredGradient, Leaf
from agt_lightning.gradients.outer_product import OuterProduct
from agt_lightning.interval import Interval


class RowGradient(FactoredGradient):
    """``δ_i = Σ_t e(k_it) ⊗ g_it``, stored as the rows that a sample reads instead of the whole table.

    Args:
        rows: row read by each position, (b, t).
        values: bounds on the gradient there, (b, t, d).
        count: number v of rows.

    Example:
        >>> gradient = RowGradient(torch.tensor([[0], [2]]), Interval.point(torch.ones(2, 1, 4)), 3)
        >>> gradient.shape, gradient.total(torch.ones(2)).upper[:, 0]
        ((3, 4), tensor([1., 0., 1.]))
    """

    def __init__(self, rows: Tensor, values: Interval, count: int) -> None:
        self.rows = rows
        self.values = values
        self.count = count

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        """Shape of the table, (v, d)."""
        return (self.count, self.values.shape[2])

    @property
    @override
    def samples(self) -> int:
        return self.values.shape[0]

    @override
    def block(self, start: int, stop: int) -> Interval:
        """Return elements of the table: outer products with the unit vectors of the rows read."""
        first, last = start // self.row, (stop - 1) // self.row
        reads = self.rows[..., None] == torch.arange(first, last + 1, device=self.rows.device)
        units = Interval.point(reads.to(self.values.dtype), nonnegative=True)
        offset = first * self.row
        return OuterProduct(units, self.values).block(start - offset, stop - offset)

    @override
    def total(self, weights: Tensor) -> Interval:
        """Return weighted values, summed for each row of the table."""
        weighted = multiply(self.values, Interval.point(weights[:, None, None], nonnegative=True))

        def gathered(bound: Tensor) -> Tensor:
            table = bound.new_zeros(self.shape)
            return table.index_add_(0, self.rows.reshape(-1), bound.reshape(-1, self.row))

        return weighted.mapped(gathered)

    @override
    def scale(self, weights: Tensor) -> float:
        """Return ``Σ_i w_i Σ_t max |g_it|``."""
        return float(self.values.magnitude.amax(dim=2).sum(dim=1) @ weights)

    @override
    def rounded(self, arithmetic: Arithmetic, roundings: int) -> RowGradient:
        return RowGradient(self.rows, arithmetic.outward(self.values, roundings), self.count)

    @override
    def nonzero(self) -> Tensor:
        table = self.rows.new_zeros(self.shape, dtype=torch.bool)
        table[self.rows.reshape(-1)] = True
        return table

    @property
    @override
    def positions(self) -> int:
        return self.rows.shape[1]

    @property
    @override
    def structure(self) -> Hashable:
        return ("RowGradient", self.count)

    @property
    @override
    def leaves(self) -> tuple[Leaf, ...]:
        return (self.rows, self.values)

    @override
    def with_leaves(self, leaves: Sequence[Leaf]) -> FactoredGradient:
        rows, values = leaves
        assert isinstance(rows, Tensor)
        assert isinstance(values, Interval)
        return RowGradient(rows, values, self.count)

    @override
    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient | None:
        """Return the gradient of some columns of the table; None for rows."""
        if axis == 0:
            return None
        return RowGradient(self.rows, self.values.rearranged(lambda bound: bound.narrow(2, start, length)), self.count)
