"""Bound propagation through a captured program: interval bounds forward, then backward to per-sample gradients."""

from agt_lightning.propagation.ibp import propagate_backward, propagate_forward
from agt_lightning.propagation.program import Program

__all__ = ["Program", "propagate_backward", "propagate_forward"]
