"""The shared forms of element-wise functions of one input: bounds on the function and on its derivative."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType
from typing import cast

import torch
from torch import Tensor

from agt_lightning.arithmetic import multiply
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.rules.base import ElementwiseRule, Site, name_of
from agt_lightning.rules.roundings import UNSTATED, Roundings
from agt_lightning.rules.values import Value, as_interval

Function = Callable[[Tensor], Tensor] | Callable[[Site, Tensor], Tensor]
"""A function of x, element by element, or one of the call site and x if it depends on the settings of the call."""

Turn = tuple[float, float]
"""A point, and a value that the function takes there or approaches from one side."""


def _takes_site(function: Function) -> bool:
    """Return whether the first of two arguments is the site; functions written in C, such as `torch.tanh`, take x."""
    if isinstance(function, BuiltinFunctionType):
        return False
    try:
        signature = inspect.signature(function)
        signature.bind("x")
    except ValueError:  # no signature
        return False
    except TypeError:  # one argument is too few
        return True
    return next(iter(signature.parameters)) == "site"


def evaluate(function: Function, site: Site, x: Tensor) -> Tensor:
    """Evaluate a function of x, or of the site and x.

    Args:
        function: f.
        site: the call, which has the settings.
        x: of any shape.

    Example:
        >>> evaluate(torch.square, None, torch.tensor(3.0)), evaluate(lambda site, x: x + 1, None, torch.tensor(3.0))
        (tensor(9.), tensor(4.))
    """
    if _takes_site(function):
        return cast("Callable[[Site, Tensor], Tensor]", function)(site, x)
    return cast("Callable[[Tensor], Tensor]", function)(x)


@dataclass(frozen=True)
class Monotone(ElementwiseRule):
    """A non-decreasing function whose derivative is non-decreasing as well (a convex one).

    ``f([l, u]) = [f(l), f(u)]`` and ``f'([l, u]) = [f'(l), f'(u)]``; both exact.

    Args:
        function: f, a function of tensors x; or of the site and x if it depends on settings of the call.
        derivative: f', likewise, equal to what autograd uses, also at kinks.
        nonnegative: whether f >= 0.
        product: bounds on ``g f'(x)`` from those on g and x, if they can be computed without bounds on f'.
        rounding: of values and gradients; the default is wide.

    Example:
        >>> exponential = Monotone(torch.exp, torch.exp, nonnegative=True)
        >>> exponential.forward(None, [Interval(torch.zeros(1), torch.ones(1))])
        Interval(lower=tensor([1.]), upper=tensor([2.7183]))
    """

    function: Function
    derivative: Function
    nonnegative: bool = False
    product: Callable[[Interval, Interval], Interval] | None = None
    rounding: Roundings = UNSTATED

    def roundings(self, site: Site) -> Roundings:
        """Those that were given."""
        return self.rounding

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """``[f(l), f(u)]``."""
        x = as_interval(inputs[0])
        return x.mapped(lambda bound: evaluate(self.function, site, bound), nonnegative=self.nonnegative)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """``g f'``; a monotone f has ``f' >= 0``."""
        x = as_interval(inputs[0])
        if self.product is not None:
            return [self.product(grad, x)]
        slope = x.mapped(lambda bound: evaluate(self.derivative, site, bound), nonnegative=True)
        return [multiply(grad, slope)]


def _jumps(x: Tensor, value: Tensor, turn: Turn) -> bool:
    """Return whether any x is at a turn where the function takes another value too."""
    point, other = turn
    return bool(((x == point) & (value != other)).any())


@dataclass(frozen=True)
class PiecewiseMonotoneFunction:
    """A function that is monotone between its turns, so its values at the turns and at both ends span its range.

    ``f([l, u]) = hull {f(l), f(u)} ∪ {v : (p, v) is a turn, l <= p <= u}``; exact up to rounding, jumps included if
    their one-sided limits are listed.

    Args:
        function: f, a function of tensors x; or of the site and x if it depends on settings of the call.
        turns: extrema and jumps; a function of the site if they depend on settings of the call.
        nonnegative: whether f >= 0; a function of the site if that depends on settings of the call.

    Example:
        >>> parabola = PiecewiseMonotoneFunction(torch.square, turns=[(0.0, 0.0)], nonnegative=True)
        >>> parabola.over(None, Interval(torch.tensor([-1.0, 1.0]), torch.tensor([2.0, 3.0])))
        Interval(lower=tensor([0., 1.]), upper=tensor([4., 9.]))
    """

    function: Function
    turns: Sequence[Turn] | Callable[[Site], Sequence[Turn]] = ()
    nonnegative: bool | Callable[[Site], bool] = False

    def over(self, site: Site, x: Interval) -> Interval:
        """Return the range over each element's interval."""
        nonnegative = self.nonnegative(site) if callable(self.nonnegative) else self.nonnegative
        turns = self.turns(site) if callable(self.turns) else self.turns
        at_lower = evaluate(self.function, site, x.lower)
        if x.is_point and not any(_jumps(x.lower, at_lower, turn) for turn in turns):
            return Interval.point(at_lower, nonnegative=nonnegative)
        at_upper = evaluate(self.function, site, x.upper)
        # Ordered here, so that rounding of a function that is nearly flat cannot exchange the bounds.
        lower, upper = torch.minimum(at_lower, at_upper), torch.maximum(at_lower, at_upper)
        for point, value in turns:
            between = (x.lower <= point) & (x.upper >= point)
            lower = torch.where(between, lower.clamp(max=value), lower)
            upper = torch.where(between, upper.clamp(min=value), upper)
        return Interval.trusted(lower, upper, nonnegative=nonnegative)


def _everywhere(x: Interval) -> Tensor:
    return torch.ones_like(x.lower, dtype=torch.bool)


@dataclass(frozen=True)
class PiecewiseMonotone(ElementwiseRule):
    """A function of one input, bounded exactly through the extrema of its value and of its derivative.

    Args:
        value: f.
        slope: f', equal to what autograd uses, also at kinks.
        domain: maps an interval to whether f is defined and finite on it, element by element.
        rounding: of values and gradients; a function of the site if it depends on settings of the call; the default is
            wide.

    Example:
        >>> square = PiecewiseMonotone(
        ...     PiecewiseMonotoneFunction(torch.square, turns=[(0.0, 0.0)], nonnegative=True),
        ...     PiecewiseMonotoneFunction(lambda x: 2 * x),
        ... )
        >>> square.forward(None, [Interval(-torch.ones(1), 2 * torch.ones(1))])
        Interval(lower=tensor([0.]), upper=tensor([4.]))
    """

    value: PiecewiseMonotoneFunction
    slope: PiecewiseMonotoneFunction
    domain: Callable[[Interval], Tensor] = _everywhere
    rounding: Roundings | Callable[[Site], Roundings] = UNSTATED

    def roundings(self, site: Site) -> Roundings:
        """Those that were given."""
        return self.rounding if isinstance(self.rounding, Roundings) else self.rounding(site)

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
