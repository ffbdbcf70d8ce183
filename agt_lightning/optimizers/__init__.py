"""Abstract counterparts of `torch.optim`: one update of the box for each update of the parameters."""

from agt_lightning.optimizers.base import AbstractOptimizer, abstract_optimizer
from agt_lightning.optimizers.sgd import AbstractSGD

__all__ = ["AbstractOptimizer", "AbstractSGD", "abstract_optimizer"]
