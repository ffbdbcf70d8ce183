"""Methods of forward propagation: interval bounds, backward substitution, or both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from agt_lightning.capture import Call
from agt_lightning.errors import require_one_of
from agt_lightning.interval import Interval
from agt_lightning.propagation.crown import (
    DEFAULT_MEMORY_BUDGET,
    OptimizedSubstitution,
    Substitution,
    tightened_values,
)
from agt_lightning.propagation.ibp import Refinement
from agt_lightning.propagation.program import Program
from agt_lightning.rules import Value

Method = Literal["ibp", "crown", "tightest", "alpha-crown"]
"""``"ibp"``: interval bounds; ``"crown"``: linear bounds at each layer; ``"tightest"``: what both allow;
``"alpha-crown"``: the same with lower lines that are searched for, far slower."""

METHODS: tuple[Method, ...] = get_args(Method)


def substitution(method: Method, program: Program, memory_budget: int = DEFAULT_MEMORY_BUDGET) -> Substitution | None:
    """Return what bounds linear forms; None if the method is interval bounds alone.

    Raises:
        ValueError: if the method is unknown.
    """
    require_method(method)
    if method == "ibp":
        return None
    kind = OptimizedSubstitution if method == "alpha-crown" else Substitution
    return kind(program, memory_budget=memory_budget)


def refinement(
    method: Method,
    program: Program,
    skip: frozenset[str] = frozenset(),
    wanted: frozenset[str] = frozenset(),
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Refinement | None:
    """Return how `propagate_forward` tightens interval bounds; None if the method is interval bounds alone.

    Args:
        method: one of `METHODS`.
        program: the program.
        skip: values that are not computed.
        wanted: values whose own bounds are results.
        memory_budget: bytes for coefficients.

    Raises:
        ValueError: if the method is unknown.
    """
    linear = substitution(method, program, memory_budget)
    if linear is None:
        return None
    targets = tightened_values(program, skip, wanted)
    choose = _replaced if method == "crown" else Interval.intersect

    def refine(values: Mapping[str, Value], call: Call, bounds: Interval) -> Interval:
        if call.name not in targets or bounds.is_point:
            return bounds
        return choose(bounds, linear.bounds(values, call.name, bounds))

    return refine


def require_method(method: str) -> None:
    """Raise unless the method is known.

    Raises:
        ValueError: if it is unknown; the message names the known ones.
    """
    require_one_of("method", method, METHODS)


def _replaced(bounds: Interval, other: Interval) -> Interval:
    """Return the other bounds, with the sign that the first ones are known to have."""
    if not bounds.nonnegative:
        return other
    return Interval.trusted(other.lower.clamp(min=0), other.upper.clamp(min=0), nonnegative=True)
