"""The doors: the same engine as a callback, a mixin and a strategy."""

from agt_lightning.lightning.callback import CertifiedTraining
from agt_lightning.lightning.mixin import CertifiedModule
from agt_lightning.lightning.strategy import AbstractGradientStrategy

__all__ = ["AbstractGradientStrategy", "CertifiedModule", "CertifiedTraining"]
