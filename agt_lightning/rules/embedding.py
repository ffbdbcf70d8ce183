"""Tables of vectors, read at integers that no adversary can change.

Axis letters: ``b`` samples, ``t`` positions, ``v`` rows of the table, ``d`` its columns.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from agt_lightning.errors import UncertifiableError
from agt_lightning.gradients import FactoredGradient, RowGradient
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.roundings import Exact, Roundings
from agt_lightning.rules.selection import Selection
from agt_lightning.rules.values import Value, as_interval


class Embedding(Rule):
    """``embedding``: row k of a frozen or trained table for integers k; exact."""

    _of_positions = Selection()

    def at(self, site: Site) -> Rule:
        """Return that of a selection of rows if all samples read the same, as in a table of positions."""
        return self if site.has_samples else self._of_positions

    def takes_constants(self, site: Site) -> bool:
        """Accept tables and integers that are the same for all samples."""
        return True

    def takes_parameters(self, site: Site) -> bool:
        """Accept integers that are the same for all samples."""
        return not site.trainable[1] and not site["scale_grad_by_freq"] and not site["sparse"]

    def roundings(self, site: Site) -> Roundings:
        """Rows are copied; their gradient is the sum over all positions that read them."""
        return Exact(positions=max(1, math.prod(site.shapes[1][1:])))

    def problem(self, site: Site) -> str | None:
        """Refuse a table that is not the same for all samples, and gradients that depend on the whole batch."""
        if site.samples[0] or site.trainable[1]:
            return f"`{name_of(site.call)}` at {site.call.source} reads a table that is not the same for all samples."
        if site["scale_grad_by_freq"] or site["sparse"]:
            return (
                f"`{name_of(site.call)}` at {site.call.source} scales gradients by the frequency in the batch, or "
                "keeps them sparse. Leave `scale_grad_by_freq` and `sparse` out."
            )
        return None

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """The bounds of the rows read."""
        if not site.has_samples:
            return as_interval(self._of_positions.forward(site, inputs))
        table, rows = as_interval(inputs[0]), _fixed_integers(site, inputs[1])
        return table[rows]

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """Integers have no gradient; the table's is factored if samples read it."""
        if not site.has_samples:
            return self._of_positions.backward(site, grad, inputs, output)
        return [None, None]

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """The gradient of each row read, zero for the padding row."""
        table, rows = as_interval(inputs[0]), _fixed_integers(site, inputs[1])
        counts = (rows != site.integer("padding_idx"))[..., None]

        def positions(bound: Tensor) -> Tensor:
            return (bound * counts).reshape(bound.shape[0], -1, bound.shape[-1])

        values = grad.mapped(positions, nonnegative=grad.nonnegative)
        return RowGradient(rows.reshape(rows.shape[0], -1), values, table.shape[0])


def _fixed_integers(site: Site, value: Value) -> Tensor:
    """Return fixed integers; `as_interval` refuses labels that can be flipped."""
    if isinstance(value, Tensor):
        return value
    rows = as_interval(value)
    if not rows.is_point:
        raise UncertifiableError(
            [f"`{name_of(site.call)}` at {site.call.source} reads a table at integers that can move. Use fixed ones."]
        )
    return rows.lower.long()
