"""The largest and the smallest entry along axes of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.capture.graph import ITEM
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.roundings import LinearMap, Roundings
from agt_lightning.rules.values import Value, as_interval


@dataclass(frozen=True)
class ExtremeEntry(Rule):
    """``amax``, ``max`` along an axis, and their minima.

    The value is monotone, so exact. In the backward pass an entry gets the gradient if it is the extreme one for all
    values in the box, nothing if it never is, and any share of it in between: equal entries share it, or the first
    one has it all, as the call does.

    Args:
        sign: +1 for the largest, -1 for the smallest.
    """

    sign: float

    def takes_constants(self, site: Site) -> bool:
        """Accept calls on constants alone, over any axes."""
        return True

    def roundings(self, site: Site) -> Roundings:
        """The extreme entry is a copy; its gradient is divided by the number of equal ones."""
        return LinearMap(0, 2)

    def problem(self, site: Site) -> str | None:
        """Refuse the samples' axis, and positions, which have no bounds."""
        if 0 in self._dims(site):
            return (
                f"`{name_of(site.call)}` at {site.call.source} runs over the samples, so that each meets all others. "
                "Choose other axes, for example `dim=1`."
            )
        if site.call.arguments.get(ITEM, 0) == 0:
            return None
        return (
            f"`{name_of(site.call)}` at {site.call.source} uses the position of an extreme entry, which has no bounds. "
            "Leave it out of the loss."
        )

    def _dims(self, site: Site) -> list[int]:
        rank, dims = len(site.shapes[0]), site.call.arguments.get("dim")
        if isinstance(dims, int):
            return [dims % rank]
        assert dims is None or isinstance(dims, list | tuple)
        return [int(dim) % rank for dim in dims] if dims else list(range(rank))

    def _reduce(self, site: Site, values: Tensor, *, keepdim: bool) -> Tensor:
        extreme = torch.amax if self.sign > 0 else torch.amin
        return extreme(values, dim=self._dims(site), keepdim=keepdim)

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """The extreme of all lower bounds, and that of all upper bounds."""
        value, keepdim = as_interval(inputs[0]), bool(site.call.arguments.get("keepdim", False))
        return value.mapped(lambda bound: self._reduce(site, bound, keepdim=keepdim), nonnegative=value.nonnegative)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """The gradient, to entries that are or may be the extreme one."""
        value = as_interval(inputs[0]).scaled(self.sign)
        always, possible = self._winners(site, value)
        shape = [1 if axis in self._dims(site) else size for axis, size in enumerate(value.shape)]
        lower, upper = (bound.reshape(shape) for bound in (grad.lower, grad.upper))
        shares = (
            torch.where(always, bound, torch.where(possible, part, 0.0))
            for bound, part in ((lower, lower.clamp(max=0)), (upper, upper.clamp(min=0)))
        )
        return [Interval.trusted(*shares, nonnegative=grad.nonnegative)]

    def _winners(self, site: Site, value: Interval) -> tuple[Tensor, Tensor]:
        """Return which entries are the only largest ones in all cases, and which can be among the largest."""
        dims = self._dims(site)
        least = value.lower.amax(dim=dims, keepdim=True)
        possible = value.upper >= least
        return possible & (possible.sum(dim=dims, keepdim=True) == 1), possible
