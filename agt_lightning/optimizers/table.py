"""Which optimizers have bounds."""

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
"""By exact class: a subclass could step differently."""


def abstract_optimizer(optimizer: torch.optim.Optimizer) -> AbstractOptimizer | None:
    """The counterpart of an optimizer of exactly this class; None if there is none.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(1))
        >>> type(abstract_optimizer(torch.optim.AdamW([parameter]))).__name__
        'AbstractAdamW'
        >>> abstract_optimizer(torch.optim.Rprop([parameter])) is None
        True
    """
    kind = OPTIMIZERS.get(type(optimizer))
    return None if kind is None else kind()


def optimizer_problems(optimizer: torch.optim.Optimizer | None) -> list[str]:
    """Why this optimizer has no bounds, each reason with its way out; none for no optimizer."""
    if optimizer is None:
        return []
    counterpart = abstract_optimizer(optimizer)
    if counterpart is not None:
        return counterpart.problems(optimizer)
    known = ", ".join(f"`torch.optim.{kind.__name__}`" for kind in OPTIMIZERS)
    return [f"`{type(optimizer).__name__}` has no bounds. Use one of {known} itself, not a subclass."]
