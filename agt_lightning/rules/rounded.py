"""The rules for a program that runs in floating point arithmetic, in any order of summation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from typing_extensions import override

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.errors import UncertifiableError
from agt_lightning.gradients import FactoredGradient
from agt_lightning.interval import Interval
from agt_lightning.rounding import Floats
from agt_lightning.rules.base import Rule, Site
from agt_lightning.rules.roundings import Roundings
from agt_lightning.rules.values import Value


@dataclass(frozen=True)
class Rounded(Rule):
    """A rule whose results also contain those of a floating point program, and cover their own rounding.

    Args:
        rule: the rule in real arithmetic, which states the roundings of its calls.
        own: floating point type in which bounds are computed.
        floats: whether the program runs in the type of each call's result, or in real arithmetic.
    """

    rule: Rule
    own: torch.dtype
    floats: Floats = "run"

    @override
    def problem(self, site: Site) -> str | None:
        return self.rule.problem(site)

    @override
    def takes_parameters(self, site: Site) -> bool:
        return self.rule.takes_parameters(site)

    @override
    def takes_constants(self, site: Site) -> bool:
        return self.rule.takes_constants(site)

    @override
    def roundings(self, site: Site) -> Roundings:
        return self.rule.at(site).roundings(site)

    @override
    def forward(self, site: Site, inputs: Sequence[Value]) -> Value:
        rule = self.rule.at(site)
        result = rule.roundings(site).forward(rule, site, inputs, self.arithmetic(site))
        if isinstance(result, Interval):
            self._require_in_range(site, result)
        return result

    @override
    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        rule = self.rule.at(site)
        gradients = rule.roundings(site).backward(rule, site, grad, inputs, output, self.arithmetic(site))
        for gradient in gradients:
            if gradient is not None:
                self._require_in_range(site, gradient)
        return gradients

    def _require_in_range(self, site: Site, value: Interval) -> None:
        """Raise if a run could compute a number beyond its type, which becomes infinite; NaN follows."""
        arithmetic = self.arithmetic(site)
        if largest := arithmetic.overflow(value):
            kind = str(arithmetic.run).removeprefix("torch.")
            raise UncertifiableError(
                [
                    f"Expected numbers in the range of {kind}, but a run can reach {largest:.3g}, which is infinite "
                    "there. Use a stable function (`softplus` for `log(1 + exp(x))`), a weaker adversary or fewer "
                    'steps, train in float64, or use `floats="real"`.'
                ]
            )

    @override
    def share(self, site: Site, gradient: Interval, uses: int) -> Interval:
        """Return the gradient, widened by the rounding of the sum of all uses in any order."""
        return self.arithmetic(site).outward(gradient, uses)

    @override
    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """Return the factors of the gradient as a run computes them, up to its sum over samples."""
        rule = self.rule.at(site)
        roundings, arithmetic = rule.roundings(site), self.arithmetic(site)
        if type(rule).parameter_gradient is Rule.parameter_gradient:  # by the backward bounds of this class
            return super().parameter_gradient(site, position, roundings.spread(site, grad, arithmetic), inputs)
        return roundings.parameter_gradient(rule, site, position, grad, inputs, arithmetic)

    def arithmetic(self, site: Site) -> Arithmetic:
        """Return the roundings of a call, which computes in the type of its result.

        If an input is of a coarser type, so is its gradient: that type counts for the whole call.
        """
        result = site.call.dtype
        if self.floats != "run" or not result.is_floating_point:
            return Arithmetic(None, self.own)
        kinds = (result, *(kind for kind in site.kinds if kind.is_floating_point))
        return Arithmetic(max(kinds, key=lambda kind: torch.finfo(kind).eps), self.own)
