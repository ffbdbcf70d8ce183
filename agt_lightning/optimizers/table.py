"""The table of optimizers that have bounds."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from agt_lightning.optimizers.adagrad import AbstractAdagrad
from agt_lightning.optimizers.adam import AbstractAdam, AbstractAdamW
from agt_lightning.optimizers.base import AbstractOptimizer
from agt_lightning.optimizers.rmsprop import AbstractRMSprop
from agt_lightning.optimizers.sgd import AbstractSGD

OPTIMIZERS: Mapping[type[torch.optim.Optimizer], type[AbstractOptimizer]] = {
    torch.optim.SGD: AbstractSGD,
    torch.optim.Adam: AbstractAdam,
    torch.optim.AdamW: AbstractAdamW,
    torch.optim.RMSprop: AbstractRMSprop,
    torch.optim.Adagrad: AbstractAdagrad,
}
"""Counterparts by exact class: a subclass could step differently."""


def abstract_optimizer(optimizer: torch.optim.Optimizer) -> AbstractOptimizer | None:
    """Return the abstract counterpart of an optimizer; None if its exact class has none.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(1))
        >>> type(abstract_optimizer(torch.optim.AdamW([parameter]))).__name__
        'AbstractAdamW'
        >>> abstract_optimizer(torch.optim.Rprop([parameter])) is None
        True
    """
    counterpart = OPTIMIZERS.get(type(optimizer))
    return None if counterpart is None else counterpart()


def optimizer_problems(optimizer: torch.optim.Optimizer | None) -> list[str]:
    """List the reasons why this optimizer has no bounds, each with a remedy; empty without an optimizer.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer_problems(torch.optim.SGD([parameter], lr=0.1, momentum=0.9))
        []
        >>> optimizer_problems(torch.optim.Rprop([parameter]))
        ['`Rprop` has no bounds. Use one of `torch.optim.SGD`, ...']
    """
    if optimizer is None:
        return []
    counterpart = abstract_optimizer(optimizer)
    if counterpart is not None:
        return counterpart.problems(optimizer)
    supported = ", ".join(f"`torch.optim.{optimizer_type.__name__}`" for optimizer_type in OPTIMIZERS)
    return [f"`{type(optimizer).__name__}` has no bounds. Use one of {supported} itself, not a subclass."]
