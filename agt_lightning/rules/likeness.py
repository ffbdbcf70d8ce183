"""Calls that give one value the shape or the type of another, of which they read nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch._ops import OpOverload
from typing_extensions import override

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.roundings import Roundings
from agt_lightning.rules.values import Value


@dataclass(frozen=True)
class Like(Rule):
    """``expand_as``, ``reshape_as``, ``view_as`` and ``type_as``: the call without the other value.

    Args:
        rule: of the call that names the shape or the type.
        op: that call, if its rule calls it.
    """

    rule: Rule
    op: OpOverload | None = None

    def alone(self, site: Site) -> Site:
        """Return the call as one of its first input."""
        arguments = {"self": site["self"], "size": list(site.call.shape), "implicit": False}
        call = replace(site.call, op=self.op or site.call.op, arguments=arguments)
        first = slice(0, 1)
        kinds = site.kinds[first] if site.trainable[0] else ()
        return replace(
            site,
            call=call,
            shapes=site.shapes[first],
            samples=site.samples[first],
            trainable=site.trainable[first],
            kinds=kinds,
        )

    def roundings(self, site: Site) -> Roundings:
        """Those of the other call."""
        return LikeRoundings(self.rule.roundings(self.alone(site)))

    def problem(self, site: Site) -> str | None:
        """Refuse a value of all samples in the shape of one of each sample."""
        if site.samples[0] == site.has_samples:
            return self.rule.problem(self.alone(site))
        return (
            f"`{name_of(site.call)}` at {site.call.source} gives a value that all samples share the shape of one with "
            "samples. Leave the call out: broadcasting does the same."
        )

    def forward(self, site: Site, inputs: Sequence[Value]) -> Value:
        """The first input in its new shape or type."""
        return self.rule.forward(self.alone(site), inputs[:1])

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """The gradient of the first input; none for the other."""
        return [*self.rule.backward(self.alone(site), grad, inputs[:1], output), None]


@dataclass(frozen=True)
class LikeRoundings(Roundings):
    """The roundings of the call of the first input.

    Args:
        roundings: of that call.
    """

    roundings: Roundings

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        assert isinstance(rule, Like)
        return self.roundings.forward(rule.rule, rule.alone(site), inputs[:1], arithmetic)

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
        assert isinstance(rule, Like)
        return [*self.roundings.backward(rule.rule, rule.alone(site), grad, inputs[:1], output, arithmetic), None]
