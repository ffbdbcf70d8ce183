"""Backward substitution of linear bounds with interval parameters: CROWN (proposition 3.5, corrected)."""

from agt_lightning.propagation.crown.backward import DEFAULT_MEMORY_BUDGET, Substitution
from agt_lightning.propagation.crown.forms import unit_rows
from agt_lightning.propagation.crown.optimized import OptimizedSubstitution
from agt_lightning.propagation.crown.slopes import Slopes
from agt_lightning.propagation.crown.targets import tightened_values

__all__ = [
    "DEFAULT_MEMORY_BUDGET",
    "OptimizedSubstitution",
    "Slopes",
    "Substitution",
    "tightened_values",
    "unit_rows",
]
