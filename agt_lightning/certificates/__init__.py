"""Certificates: what the bounds of a training prove about predictions, losses and attacks."""

from agt_lightning.certificates.objectives import (
    binary_cross_entropy_bounds,
    cross_entropy_bounds,
    possible_classes,
    squared_error_bounds,
    targeted_attack_reachable,
)

__all__ = [
    "binary_cross_entropy_bounds",
    "cross_entropy_bounds",
    "possible_classes",
    "squared_error_bounds",
    "targeted_attack_reachable",
]
