"""Choices of the lower line of a kinked function where its argument can have both signs.

``relu(x) >= α x`` for every α in [0, 1], so any choice is sound; choices differ in tightness alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from agt_lightning.interval import Interval

Slopes = Callable[[str, Interval], Tensor]
"""From the name of a call and the box (b, *shape) of its argument to α, which broadcasts to (b, r, *shape)."""


def zero(name: str, box: Interval) -> Tensor:
    """α = 0: the lower line never leaves the function's range."""
    return torch.zeros_like(box.lower).unsqueeze(1)


def one(name: str, box: Interval) -> Tensor:
    """α = 1."""
    return torch.ones_like(box.lower).unsqueeze(1)


def parallel(name: str, box: Interval) -> Tensor:
    """α = u / (u - l): parallel to the upper line."""
    upper, lower = box.upper.clamp(min=0), box.lower.clamp(max=0)
    return torch.where(upper > lower, upper / (upper - lower), 0.5).unsqueeze(1)


def adaptive(name: str, box: Interval) -> Tensor:
    """α = 1 where the positive part is the longer one, else 0: the least area between both lines."""
    return (box.upper > -box.lower).to(box.dtype).unsqueeze(1)


SLOPES: dict[str, Slopes] = {"zero": zero, "one": one, "parallel": parallel, "adaptive": adaptive}
