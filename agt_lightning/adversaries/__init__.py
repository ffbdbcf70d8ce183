"""Threat models: the changes that an adversary can make to the training data of one batch."""

from agt_lightning.adversaries.base import Adversary
from agt_lightning.adversaries.bounded import BoundedAdversary
from agt_lightning.adversaries.unbounded import UnboundedAdversary

__all__ = ["Adversary", "BoundedAdversary", "UnboundedAdversary"]
