"""Bound propagation through a captured program: interval bounds forward, then backward to per-sample gradients."""

from agt_lightning.propagation.crown import DEFAULT_MEMORY_BUDGET
from agt_lightning.propagation.ibp import propagate_backward, propagate_forward
from agt_lightning.propagation.methods import METHODS, Method, refinement, require_method, substitution
from agt_lightning.propagation.program import Program

__all__ = [
    "DEFAULT_MEMORY_BUDGET",
    "METHODS",
    "Method",
    "Program",
    "propagate_backward",
    "propagate_forward",
    "refinement",
    "require_method",
    "substitution",
]
