"""The slope of the line below a kinked function where its argument can have both signs.

``relu(x) >= α x`` for every α in [0, 1], so any choice is sound; choices differ in tightness alone.
"""

from collections.abc import Callable

from torch import Tensor

from agt_lightning.interval import Interval

Slopes = Callable[[str, Interval], Tensor]
"""From the name of a call and the box (b, *shape) of its argument to α, which broadcasts to (b, r, *shape)."""


def adaptive(name: str, box: Interval) -> Tensor:
    """Return α = 1 where the positive part of the box is the longer one, else 0: the least area between both lines."""
    return (box.upper > -box.lower).to(box.dtype).unsqueeze(1)
