"""Certified metrics as pure functions of bounds and targets, for one batch."""

from agt_lightning.metrics.functional.backdoor_accuracy import backdoor_accuracy
from agt_lightning.metrics.functional.certified_accuracy import certified_accuracy
from agt_lightning.metrics.functional.certified_cross_entropy import certified_cross_entropy
from agt_lightning.metrics.functional.certified_mse import certified_mse
from agt_lightning.metrics.functional.certified_rate import certified_rate
from agt_lightning.metrics.functional.targeted_attack_success import targeted_attack_success

__all__ = [
    "backdoor_accuracy",
    "certified_accuracy",
    "certified_cross_entropy",
    "certified_mse",
    "certified_rate",
    "targeted_attack_success",
]
