"""Certificates of predictions and of an adversary's goals, from bounds on the parameters (appendix B)."""

from agt_lightning.certificates.acceptance import Acceptance
from agt_lightning.certificates.budget_search import Budget, budget
from agt_lightning.certificates.goals import (
    binary_cross_entropy_bounds,
    cross_entropy_bounds,
    possible_classes,
    squared_error_bounds,
    targeted_attack_reachable,
)
from agt_lightning.certificates.model import CertifiedModel
from agt_lightning.certificates.predictions import Certification
from agt_lightning.certificates.start import StartOfTraining
from agt_lightning.certificates.task import Task

__all__ = [
    "Acceptance",
    "Budget",
    "Certification",
    "CertifiedModel",
    "StartOfTraining",
    "Task",
    "binary_cross_entropy_bounds",
    "budget",
    "cross_entropy_bounds",
    "possible_classes",
    "squared_error_bounds",
    "targeted_attack_reachable",
]
