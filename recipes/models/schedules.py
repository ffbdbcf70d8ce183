"""Learning rates that fall with the number of steps."""

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override


class InverseTimeDecay(LRScheduler):
    """Step t, counted from 0, has learning rate max(α / (1 + ``decay`` · t), ``floor``).

    Args:
        optimizer: its learning rate is α.
        decay: rate of the decay, per step.
        floor: smallest learning rate.
    """

    def __init__(self, optimizer: Optimizer, decay: float, floor: float = 0.0) -> None:
        self.decay, self.floor = decay, floor
        super().__init__(optimizer)

    @override
    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of each parameter group at the current step."""
        return [max(rate / (1 + self.decay * self.last_epoch), self.floor) for rate in self.base_lrs]
