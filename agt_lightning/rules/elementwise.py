"""The shared forms of element-wise functions of one input: bounds of the function and of its derivative."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic import multiply
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Rule, Site, Value, as_interval, map_bounds, name_of

Function = Callable[[Site, Tensor], Tensor]
Turn = tuple[float, float]
"""A point and a value that the function takes there, or comes close to from one side."""


@dataclass(frozen=True)
class Monotone(Rule):
    """A non-decreasing function whose derivative is non-decreasing as well (a convex one).

    ``f([l, u]) = [f(l), f(u)]`` and ``f'([l, u]) = [f'(l), f'(u)]``; both exact.

    Args:
        function: f, applied to tensors; it receives the site for its settings.
        derivative: f', likewise, equal to what autograd uses, also at kinks.
        nonnegative: whether f >= 0.
        product: ``g f'(x)`` of tensors g and x, if it can be had without a tensor of f'.
    """

    function: Function
    derivative: Function
    nonnegative: bool = False
    product: Callable[[Tensor, Tensor], Tensor] | None = None

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``[f(l), f(u)]``."""
        return map_bounds(
            as_interval(inputs[0]), lambda bound: self.function(site, bound), nonnegative=self.nonnegative
        )

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g f'``; a monotone f has ``f' >= 0``."""
        x = as_interval(inputs[0])
        if self.product is not None:
            return [_at_ends(self.product, grad, x)]
        slope = map_bounds(x, lambda bound: self.derivative(site, bound), nonnegative=True)
        return [multiply(grad, slope)]


def _at_ends(product: Callable[[Tensor, Tensor], Tensor], grad: Interval, x: Interval) -> Interval:
    """``g f'`` for f' >= 0 non-decreasing: each bound of g at the end of x that makes it larger, or smaller."""
    if x.is_point:
        lower = product(grad.lower, x.lower)
        upper = lower if grad.is_point else product(grad.upper, x.lower)
        return Interval.trusted(lower, upper, nonnegative=grad.nonnegative)
    at_lower, at_upper = product(grad.upper, x.lower), product(grad.upper, x.upper)
    upper = torch.maximum(at_lower, at_upper)
    if not grad.is_point:
        at_lower, at_upper = product(grad.lower, x.lower), product(grad.lower, x.upper)
    return Interval.trusted(torch.minimum(at_lower, at_upper), upper, nonnegative=grad.nonnegative)


def _no_turns(site: Site) -> Sequence[Turn]:
    return ()


def always(site: Site) -> bool:
    """Whatever the settings."""
    return True


def never(site: Site) -> bool:
    """For no settings."""
    return False


@dataclass(frozen=True)
class PiecewiseMonotoneFunction:
    """A function that rises or falls between its turns, so both ends and the turns between them span its range.

    ``f([l, u]) = hull {f(l), f(u)} ∪ {v : (p, v) is a turn, l <= p <= u}``; exact up to rounding, jumps included if
    their one-sided limits are listed.

    Args:
        function: f, applied to tensors.
        turns: extrema and jumps, which may depend on the settings of the call.
        nonnegative: whether f >= 0 with these settings.

    Example:
        >>> parabola = PiecewiseMonotoneFunction(
        ...     lambda site, x: x.square(), lambda site: [(0.0, 0.0)], nonnegative=always
        ... )
        >>> parabola.over(None, Interval(torch.tensor([-1.0, 1.0]), torch.tensor([2.0, 3.0])))
        Interval(lower=tensor([0., 1.]), upper=tensor([4., 9.]))
    """

    function: Function
    turns: Callable[[Site], Sequence[Turn]] = _no_turns
    nonnegative: Callable[[Site], bool] = never

    def over(self, site: Site, x: Interval) -> Interval:
        """The range over each element's interval."""
        at_lower = self.function(site, x.lower)
        if x.is_point:
            return Interval.point(at_lower, nonnegative=self.nonnegative(site))
        at_upper = self.function(site, x.upper)
        # Ordered here, so that rounding of a function that is nearly flat cannot exchange the bounds.
        lower, upper = torch.minimum(at_lower, at_upper), torch.maximum(at_lower, at_upper)
        for point, value in self.turns(site):
            between = (x.lower <= point) & (x.upper >= point)
            lower = torch.where(between, lower.clamp(max=value), lower)
            upper = torch.where(between, upper.clamp(min=value), upper)
        return Interval.trusted(lower, upper, nonnegative=self.nonnegative(site))


def _everywhere(x: Interval) -> Tensor:
    return torch.ones_like(x.lower, dtype=torch.bool)


@dataclass(frozen=True)
class PiecewiseMonotone(Rule):
    """A function of one input, bounded exactly through the extrema of its value and of its derivative.

    Args:
        value: f.
        slope: f', equal to what autograd uses, also at kinks.
        domain: which intervals f is defined and finite on.
    """

    value: PiecewiseMonotoneFunction
    slope: PiecewiseMonotoneFunction
    domain: Callable[[Interval], Tensor] = _everywhere

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``f([l, u])``."""
        x = as_interval(inputs[0])
        if self.domain is not _everywhere and not bool(self.domain(x).all()):
            raise UncertifiableError(
                [
                    f"`{name_of(site.call)}` at {site.call.source} receives values that can reach zero or change sign, "
                    "where it has no finite bounds. Add a positive constant, or clamp its input away from zero."
                ]
            )
        return self.value.over(site, x)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g f'([l, u])``."""
        return [multiply(grad, self.slope.over(site, as_interval(inputs[0])))]
