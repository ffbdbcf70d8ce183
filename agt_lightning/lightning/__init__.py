"""Lightning integrations: callback, mixin and strategy over one engine."""

from agt_lightning.lightning.callback import CertifiedTraining
from agt_lightning.lightning.content_batches import ContentBatches
from agt_lightning.lightning.mixin import CertifiedModule
from agt_lightning.lightning.strategy import AbstractGradientStrategy

__all__ = ["AbstractGradientStrategy", "CertifiedModule", "CertifiedTraining", "ContentBatches"]
