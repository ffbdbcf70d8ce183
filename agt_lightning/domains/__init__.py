"""Domains: families of parameter sets that contain every run an adversary could have caused."""

from agt_lightning.domains.ball import BallDomain, HeadBall, ParameterBall
from agt_lightning.domains.base import BoundedBatch, Domain, DomainLostError, OptimizerStep, Step, TrainingSetup
from agt_lightning.domains.box import BoxDomain, BoxStep
from agt_lightning.domains.family import Choice, DomainFamily
from agt_lightning.domains.influence import InfluenceDomain, RecordedHead

__all__ = [
    "OptimizerStep",
    "BallDomain",
    "BoxDomain",
    "BoxStep",
    "Choice",
    "Domain",
    "DomainFamily",
    "DomainLostError",
    "HeadBall",
    "InfluenceDomain",
    "ParameterBall",
    "RecordedHead",
    "TrainingSetup",
    "Step",
    "BoundedBatch",
]
