"""Certified metrics for `torchmetrics`: they read bounds on outputs and accumulate over batches and processes."""

from agt_lightning.metrics.backdoor_accuracy import BackdoorAccuracy
from agt_lightning.metrics.certified_accuracy import CertifiedAccuracy
from agt_lightning.metrics.certified_cross_entropy import CertifiedCrossEntropy
from agt_lightning.metrics.certified_mse import CertifiedMSE
from agt_lightning.metrics.certified_rate import CertifiedRate
from agt_lightning.metrics.targeted_attack_success import TargetedAttackSuccess

__all__ = [
    "BackdoorAccuracy",
    "CertifiedAccuracy",
    "CertifiedCrossEntropy",
    "CertifiedMSE",
    "CertifiedRate",
    "TargetedAttackSuccess",
]
