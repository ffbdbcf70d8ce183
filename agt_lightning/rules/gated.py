"""The gated linear unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic import multiply
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval
from agt_lightning.rules.activation import sigmoid
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.roundings import Roundings
from agt_lightning.rules.values import Value, as_interval


class GatedLinearUnit(Rule):
    """``glu``: ``a σ(b)`` for the two halves a and b of an axis; exact."""

    def takes_constants(self, site: Site) -> bool:
        """Accept calls on constants alone, over any axes."""
        return True

    def roundings(self, site: Site) -> Roundings:
        """Those of a sigmoid, its derivative and products."""
        return GatedRoundings()

    def problem(self, site: Site) -> str | None:
        """Refuse the samples' axis."""
        if self.axis(site) != 0:
            return None
        return f"`{name_of(site.call)}` at {site.call.source} splits the samples' axis. Choose another, `dim=1`."

    def axis(self, site: Site) -> int:
        """Return the axis that is split."""
        return site.integer("dim") % len(site.shapes[0])

    def halves(self, site: Site, value: Interval) -> tuple[Interval, Interval]:
        """Return a and b."""
        axis = self.axis(site)
        size = value.shape[axis] // 2
        first, second = (value.rearranged(_part(axis, start, size)) for start in (0, size))
        return first, second

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``a σ(b)``."""
        value, gate = self.halves(site, as_interval(inputs[0]))
        return multiply(value, sigmoid.value.over(site, gate))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g σ(b)`` for a and ``g a σ(b) σ(-b)`` for b."""
        value, gate = self.halves(site, as_interval(inputs[0]))
        towards = (
            multiply(grad, sigmoid.value.over(site, gate)),
            multiply(multiply(grad, value), sigmoid.slope.over(site, gate)),
        )
        return [Interval.cat(towards, dim=self.axis(site))]


def _part(axis: int, start: int, size: int) -> Callable[[Tensor], Tensor]:
    return lambda bound: bound.narrow(axis, start, size)


@dataclass(frozen=True)
class GatedRoundings(Roundings):
    """A result is right relatively; ``σ(b) (1 - σ(b))`` is right relative to one, as in the rule of the sigmoid."""

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        return arithmetic.clear_of_underflow(arithmetic.outward(as_interval(rule.forward(site, inputs)), 16), 4)

    @override
    def backward(
        self,
        rule: Rule,
        site: Site,
        grad: Interval,
        inputs: Sequence[Value],
        output: Value,
        arithmetic: Arithmetic,
    ) -> Sequence[Interval | None]:
        assert isinstance(rule, GatedLinearUnit)
        (exact,) = rule.backward(site, grad, inputs, output)
        assert exact is not None
        value, _ = rule.halves(site, as_interval(inputs[0]))
        sizes = Interval.cat(
            [Interval.point(grad.magnitude), Interval.point(grad.magnitude * value.magnitude)], rule.axis(site)
        )
        wide = exact.widened(sizes.upper * arithmetic.relative(32))
        return [wide.widened(arithmetic.absolute(8) * (1 + float(value.magnitude.max())))]
