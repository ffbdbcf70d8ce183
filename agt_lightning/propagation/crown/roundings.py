"""What rounding adds to a call's result, for backward substitution (docs/floats.md, section 7).

A run computes ``y = A x + c + e`` with ``|e| <= E`` instead of ``A x + c``, so ``⟨Λ, y⟩`` is at most
``⟨Aᵀ Λ, x⟩ + ⟨Λ, c⟩ + ⟨|Λ|, E⟩``. E is what the widened rule adds to the width of the exact one, over the boxes of its
inputs: of each product, the corner with the largest magnitude is at one end of its range, and widening moves that end
by the error at that corner.

E also covers the substitution's own rounding: ``Aᵀ Λ`` is off by γ of ``|A|ᵀ |Λ|``, which costs ``γ ⟨|Λ|, |A| |x|⟩``,
and the widened rule has room for that many own roundings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture import Call
from agt_lightning.interval import Interval
from agt_lightning.propagation.program import Program
from agt_lightning.rules import Rule, Site, Value
from agt_lightning.rules.rounded import Rounded
from agt_lightning.rules.values import as_interval

_SIZE = 2.0**-4
"""Magnified error of the longest sum."""

_LONGEST = 2**18
"""Roundings from which on errors are magnified no less."""

_MARGIN = 0.125
"""Room for the rounding of a difference of two widths, relative to what is measured there."""


class CallErrors:
    """The errors E of the calls of one program, each computed once for the same inputs.

    Args:
        program: the program.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._known: dict[str, tuple[Sequence[Value], Tensor | None]] = {}

    def __call__(self, call: Call, values: Mapping[str, Value]) -> Tensor | None:
        """Return E, of the shape of the call's result; None if its rule covers no rounding, or the call rounds nothing.

        Args:
            call: the call.
            values: bounds of all values.
        """
        inputs = [values[name] for name in call.inputs]
        known = self._known.get(call.name)
        if known is None or any(old is not new for old, new in zip(known[0], inputs, strict=True)):
            self._known[call.name] = known = inputs, self._error(call, inputs)
        return known[1]

    def _error(self, call: Call, inputs: Sequence[Value]) -> Tensor | None:
        rule, site = self.program.rules[call.name], self.program.sites[call.name]
        if not isinstance(rule, Rounded):
            return None
        magnified = Magnified.of(rule.arithmetic(site), min(_LONGEST, math.prod(site.call.shape[1:]) + _inputs(site)))
        applied = rule.rule.at(site)
        wide = as_interval(applied.roundings(site).forward(applied, site, inputs, magnified))
        added = (wide.width - as_interval(applied.forward(site, inputs)).width).clamp(min=0)
        if bool((added == 0).all()):
            return None
        return (added / magnified.factor * (1 + _MARGIN)).nan_to_num(nan=torch.inf)


@dataclass(frozen=True)
class Magnified(Arithmetic):
    """An arithmetic whose errors are so large that they are not lost in a difference of two widths.

    What roundings add to a width is proportional to their sizes, so it can be measured at any size.

    Args:
        factor: by which errors are magnified.
    """

    factor: float = 1.0

    @classmethod
    def of(cls, arithmetic: Arithmetic, roundings: int) -> Magnified:
        """Magnify the errors of so many roundings to `_SIZE`."""
        return cls(arithmetic.run, arithmetic.own, max(1.0, _SIZE / arithmetic.relative(roundings)))

    def run_relative(self, roundings: int) -> float:
        """Return the magnified part of the run."""
        return self.factor * super().run_relative(roundings)

    def own_relative(self, roundings: int) -> float:
        """Return the magnified part of the bounds' own computation."""
        return self.factor * super().own_relative(roundings)

    def absolute(self, roundings: int = 1) -> float:
        """Return the magnified effect of underflow."""
        return self.factor * super().absolute(roundings)

    def stored(self, value: Interval) -> Interval:
        """Return bounds that are wider by the magnified error of one rounding, which can also move both ends alike."""
        return value if self.run is None else self.clear_of_underflow(self.outward(value))


def _inputs(site: Site) -> int:
    return sum(math.prod(shape) for shape in site.shapes)


def exact_rule(rule: Rule) -> Rule:
    """Return the rule in real arithmetic."""
    return rule.rule if isinstance(rule, Rounded) else rule
