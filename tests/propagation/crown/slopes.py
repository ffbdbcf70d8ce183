"""Choices of the line below a kinked function, the default and some worse ones; all of them are sound."""

import torch
from torch import Tensor

from agt_lightning.interval import Interval
from agt_lightning.propagation.crown.slopes import Slopes, adaptive


def zero(name: str, box: Interval) -> Tensor:
    """Return α = 0: the line never leaves the function's range."""
    return torch.zeros_like(box.lower).unsqueeze(1)


def one(name: str, box: Interval) -> Tensor:
    """Return α = 1."""
    return torch.ones_like(box.lower).unsqueeze(1)


def parallel(name: str, box: Interval) -> Tensor:
    """Return α = u / (u - l): parallel to the upper line."""
    upper, lower = box.upper.clamp(min=0), box.lower.clamp(max=0)
    return torch.where(upper > lower, upper / (upper - lower), 0.5).unsqueeze(1)


SLOPES: dict[str, Slopes] = {"zero": zero, "one": one, "parallel": parallel, "adaptive": adaptive}
