"""Tables of vectors, read at integers that no adversary can change.

Axis letters: ``b`` samples, ``t`` positions, ``v`` rows of the table, ``d`` its columns.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from agt_lightning.arithmetic import multiply
from agt_lightning.errors import UncertifiableError
from agt_lightning.gradients import FactoredGradient, OuterProduct, Piece
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, Value, as_interval, map_bounds, name_of


class RowGradient(FactoredGradient):
    """``δ_i = Σ_t e(k_it) ⊗ g_it``: the rows that a sample reads, instead of the whole table.

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
    def shape(self) -> tuple[int, ...]:
        """Shape of the table, (v, d)."""
        return (self.count, self.values.shape[2])

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.values.shape[0]

    def block(self, start: int, stop: int) -> Interval:
        """Elements of the table: outer products with the unit vectors of the rows in question."""
        first, last = start // self.row, (stop - 1) // self.row
        reads = self.rows[..., None] == torch.arange(first, last + 1, device=self.rows.device)
        units = Interval.point(reads.to(self.values.dtype), nonnegative=True)
        offset = first * self.row
        return OuterProduct(units, self.values).block(start - offset, stop - offset)

    def total(self, weights: Tensor) -> Interval:
        """Weighted values, added up row by row."""
        weighted = multiply(self.values, Interval.point(weights[:, None, None], nonnegative=True))

        def gathered(bound: Tensor) -> Tensor:
            table = bound.new_zeros(self.shape)
            return table.index_add_(0, self.rows.reshape(-1), bound.reshape(-1, self.row))

        return map_bounds(weighted, gathered)

    def scale(self, weights: Tensor) -> float:
        """``Σ_i w_i Σ_t max |g_it|``."""
        return float(self.values.magnitude.amax(dim=2).sum(dim=1) @ weights)

    @property
    def kind(self) -> Hashable:
        """The size of the table."""
        return ("RowGradient", self.count)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Rows and values."""
        return (self.rows, self.values)

    def of(self, pieces: Sequence[Piece]) -> FactoredGradient:
        """Other rows and values."""
        rows, values = pieces
        assert isinstance(rows, Tensor)
        assert isinstance(values, Interval)
        return RowGradient(rows, values, self.count)

    def narrow(self, axis: int, start: int, length: int) -> FactoredGradient | None:
        """Some columns of the table."""
        if axis == 0:
            return None
        return RowGradient(self.rows, map_bounds(self.values, lambda bound: bound.narrow(2, start, length)), self.count)


class Embedding(Rule):
    """``embedding``: row k of a frozen or trained table for integers k; exact."""

    is_contraction = True

    def problem(self, site: Site) -> str | None:
        """One table for all samples; each sample's gradient is its own."""
        if site.samples[0] or site.trainable[1]:
            return f"`{name_of(site.call)}` at {site.call.source} reads a table that is not the same for all samples."
        if site["scale_grad_by_freq"] or site["sparse"]:
            return (
                f"`{name_of(site.call)}` at {site.call.source} scales gradients by the frequency in the batch, or "
                "keeps them sparse. Leave `scale_grad_by_freq` and `sparse` out."
            )
        return None

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """The rows' bounds."""
        table, rows = as_interval(inputs[0]), _rows(site, inputs[1])
        return map_bounds(table, lambda bound: bound[rows], nonnegative=table.nonnegative)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """Integers have no gradient; the table's is factored."""
        return [None, None]

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """The gradient of each row read, zero for the padding row."""
        table, rows = as_interval(inputs[0]), _rows(site, inputs[1])
        counts = (rows != site.integer("padding_idx"))[..., None]

        def positions(bound: Tensor) -> Tensor:
            return (bound * counts).reshape(bound.shape[0], -1, bound.shape[-1])

        values = map_bounds(grad, positions, nonnegative=grad.nonnegative)
        return RowGradient(rows.reshape(rows.shape[0], -1), values, table.shape[0])


def _rows(site: Site, value: Value) -> Tensor:
    """Integers that are fixed; labels that can be flipped are refused by `interval`."""
    if isinstance(value, Tensor):
        return value
    rows = as_interval(value)
    if not rows.is_point:
        raise UncertifiableError(
            [f"`{name_of(site.call)}` at {site.call.source} reads a table at integers that can move. Use fixed ones."]
        )
    return rows.lower.long()
