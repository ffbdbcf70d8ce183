"""Abstract counterparts of `torch.optim`: they update the box of the parameters once for each step of the optimizer."""

from agt_lightning.optimizers.adagrad import AbstractAdagrad
from agt_lightning.optimizers.adam import AbstractAdam, AbstractAdamW
from agt_lightning.optimizers.base import AbstractOptimizer
from agt_lightning.optimizers.rmsprop import AbstractRMSprop
from agt_lightning.optimizers.sgd import AbstractSGD
from agt_lightning.optimizers.state import OptimizerState
from agt_lightning.optimizers.table import OPTIMIZERS, abstract_optimizer, optimizer_problems

__all__ = [
    "OPTIMIZERS",
    "AbstractAdagrad",
    "AbstractAdam",
    "AbstractAdamW",
    "AbstractOptimizer",
    "AbstractRMSprop",
    "AbstractSGD",
    "OptimizerState",
    "abstract_optimizer",
    "optimizer_problems",
]
