"""What rounding adds to a call's result, for backward substitution (docs/floats.md, section 7).

A run computes ``y = A x + c + e`` with ``|e| <= E`` instead of ``A x + c``, so ``⟨Λ, y⟩`` is at most
``⟨Aᵀ Λ, x⟩ + ⟨Λ, c⟩ + ⟨|Λ|, E⟩``. E is what the widened rule adds to the width of the exact one, over the boxes of its
inputs: of each product, the corner with the largest magnitude is at one end of its range, and widening moves that end
by the error at that corner.

E also covers the substitution's own rounding: ``Aᵀ Λ`` is off by γ of ``|A|ᵀ |Λ|``, which costs ``γ ⟨|Λ|, |A| |x|⟩``,
and the widened rule has room for that many own roundings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from agt_lightning.capture import Call
from agt_lightning.propagation.program import Program
from agt_lightning.rules import Rule, Value
from agt_lightning.rules.rounded import Rounded
from agt_lightning.rules.values import as_interval


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
        wide, exact = (as_interval(each.forward(site, inputs)) for each in (rule, rule.rule))
        added = (wide.width - exact.width).clamp(min=0)
        return 2 * added if bool((added > 0).any()) else None


def exact_rule(rule: Rule) -> Rule:
    """Return the rule in real arithmetic."""
    return rule.rule if isinstance(rule, Rounded) else rule
