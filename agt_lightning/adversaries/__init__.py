"""Threat models: what an adversary may do to the training data of one batch."""

from agt_lightning.adversaries.base import Adversary
from agt_lightning.adversaries.bounded import BoundedAdversary
from agt_lightning.adversaries.unbounded import UnboundedAdversary

__all__ = ["Adversary", "BoundedAdversary", "UnboundedAdversary"]
