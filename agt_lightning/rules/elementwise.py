"""The shared form of element-wise functions of one input: bounds of the function and of its derivative."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from agt_lightning.arithmetic import multiply
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, Value, interval, map_bounds


@dataclass(frozen=True)
class Monotone(Rule):
    """A non-decreasing function whose derivative is non-decreasing as well (a convex one).

    ``f([l, u]) = [f(l), f(u)]`` and ``f'([l, u]) = [f'(l), f'(u)]``; both exact.

    Args:
        function: f, applied to tensors; it receives the site for its settings.
        derivative: f', likewise, equal to what autograd uses, also at kinks.
        nonnegative: whether f >= 0.
        derivative_nonnegative: whether f' >= 0.
    """

    function: Callable[[Site, Tensor], Tensor]
    derivative: Callable[[Site, Tensor], Tensor]
    nonnegative: bool = False

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``[f(l), f(u)]``."""
        return map_bounds(interval(inputs[0]), lambda bound: self.function(site, bound), nonnegative=self.nonnegative)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g f'``; a monotone f has ``f' >= 0``."""
        slope = map_bounds(interval(inputs[0]), lambda bound: self.derivative(site, bound), nonnegative=True)
        return [multiply(grad, slope)]
