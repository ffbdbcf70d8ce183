"""Domains: families of parameter sets that contain every run an adversary could have caused."""

from agt_lightning.domains.base import (
    Domain,
    DomainLostError,
    FlipCounter,
    OptimizerStep,
    ParameterSet,
    Step,
    TrainingSetup,
)
from agt_lightning.domains.family import DOMAINS, DomainFamily

__all__ = [
    "DOMAINS",
    "Domain",
    "DomainFamily",
    "DomainLostError",
    "FlipCounter",
    "OptimizerStep",
    "ParameterSet",
    "Step",
    "TrainingSetup",
]
