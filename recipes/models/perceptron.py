"""What the perceptrons share: their layers and a schedule counted in steps."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def perceptron(widths: Sequence[int], dtype: torch.dtype) -> nn.Sequential:
    """Linear layers of the given widths, inputs and outputs included, with ReLU between them.

    They are initialized in the default type and then cast, so a seed gives the same network in both types.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def stepwise(optimizer: Optimizer, scheduler: Callable[[Optimizer], LRScheduler] | None) -> OptimizerLRScheduler:
    """The return value of `configure_optimizers` for a schedule that advances after every step."""
    if scheduler is None:
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), "interval": "step"}}
