"""The role of an abstract optimizer and the table of those that exist."""

from collections.abc import Mapping
from typing import Protocol

import torch

from agt_lightning.interval import Interval
from agt_lightning.optimizers.sgd import AbstractSGD


class AbstractOptimizer(Protocol):
    """Maps a box of parameters and a box of gradients to a box of updated parameters."""

    def problems(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Settings without an abstract counterpart, each with its way out."""

    def update(self, group: Mapping[str, object], box: Interval, gradient: Interval) -> Interval:
        """One step for one parameter, with the settings of its group as they are at this step."""


_OPTIMIZERS: Mapping[type[torch.optim.Optimizer], type[AbstractSGD]] = {torch.optim.SGD: AbstractSGD}


def abstract_optimizer(optimizer: torch.optim.Optimizer) -> AbstractOptimizer | None:
    """The counterpart of an optimizer of exactly this class; None if there is none.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(1))
        >>> type(abstract_optimizer(torch.optim.SGD([parameter], lr=0.1))).__name__
        'AbstractSGD'
        >>> abstract_optimizer(torch.optim.Adam([parameter])) is None
        True
    """
    kind = _OPTIMIZERS.get(type(optimizer))
    return None if kind is None else kind()
