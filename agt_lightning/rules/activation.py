"""Activation functions and other functions of one real number; value and derivative are exact over every interval.

Turns that have no closed form are roots of a derivative, found by bisection down to neighboring floating point numbers
when the module is imported. At an extremum an error of ε in its place changes the value by O(ε²), less than rounding.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from agt_lightning.arithmetic import softplus as exact_softplus
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Site
from agt_lightning.rules.elementwise import Monotone, PiecewiseMonotone, PiecewiseMonotoneFunction, Turn, always

relu = Monotone(
    function=lambda site, x: torch.clamp(x, min=0),
    derivative=lambda site, x: (x > 0).to(x.dtype),
    nonnegative=True,
    product=lambda gradient, x: torch.ops.aten.threshold_backward(gradient, x, 0),
)
"""``max(x, 0)`` with derivative ``[l > 0, u > 0]``: section 3.4's Heaviside interval, zero at zero as in autograd."""


def root(function: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    """The sign change of a function between ``low`` and ``high``, to the last bit.

    Example:
        >>> abs(root(lambda x: x.square() - 2, 1.0, 2.0) - math.sqrt(2)) < 1e-15
        True
    """
    rising = _at(function, high) > 0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (low, middle) if (_at(function, middle) > 0) == rising else (middle, high)
    return middle


def _at(function: Callable[[Tensor], Tensor], x: float) -> float:
    return float(function(torch.tensor(x, dtype=torch.float64)))


def _turn(function: Callable[[Tensor], Tensor], point: float) -> Turn:
    """A turn of a continuous function."""
    return point, _at(function, point)


def _single(number: float) -> float:
    """The nearest number of single precision."""
    return float(torch.tensor(number, dtype=torch.float32))


# --- piecewise linear ------------------------------------------------------------------------------------------------

leaky_relu = PiecewiseMonotone(
    value=PiecewiseMonotoneFunction(
        lambda site, x: torch.where(x > 0, x, x * site.number("negative_slope")),
        turns=lambda site: [(0.0, 0.0)],
    ),
    slope=PiecewiseMonotoneFunction(
        lambda site, x: torch.where(x > 0, torch.ones_like(x), site.number("negative_slope")),
        nonnegative=lambda site: site.number("negative_slope") >= 0,
    ),
)
"""``x`` above zero, ``a x`` elsewhere; derivative a at zero."""


def _ramp(
    limits: Callable[[Site], tuple[float, float]], gain: float = 1.0, *, closed: bool = False
) -> PiecewiseMonotoneFunction:
    """Derivative ``gain`` between two limits, zero outside; on the limits themselves only if ``closed``."""

    def slope(site: Site, x: Tensor) -> Tensor:
        low, high = limits(site)
        inside = (x >= low) & (x <= high) if closed else (x > low) & (x < high)
        return inside.to(x.dtype) * gain

    def turns(site: Site) -> Sequence[Turn]:
        low, high = limits(site)
        return [((low + high) / 2, gain)] if -math.inf < low < high < math.inf else []

    return PiecewiseMonotoneFunction(slope, turns, nonnegative=always)


def _limits(low: str, high: str) -> Callable[[Site], tuple[float, float]]:
    """Limits that are arguments of the call, infinite where left out."""

    def limits(site: Site) -> tuple[float, float]:
        given = site.call.arguments
        minimum, maximum = given.get(low), given.get(high)
        return (
            -math.inf if minimum is None else site.number(low),
            math.inf if maximum is None else site.number(high),
        )

    return limits


def _clamped(limits: Callable[[Site], tuple[float, float]], *, closed: bool) -> PiecewiseMonotone:
    def value(site: Site, x: Tensor) -> Tensor:
        low, high = limits(site)
        return x.clamp(min=low, max=high)

    return PiecewiseMonotone(
        PiecewiseMonotoneFunction(value, nonnegative=lambda site: min(limits(site)) >= 0), _ramp(limits, closed=closed)
    )


hardtanh = _clamped(_limits("min_val", "max_val"), closed=False)
"""``min(max(x, a), b)``; derivative zero at the limits."""

relu6 = _clamped(lambda site: (0.0, 6.0), closed=False)
"""``min(max(x, 0), 6)``; derivative zero at the limits."""

clamp = _clamped(_limits("min", "max"), closed=True)
"""``min(max(x, a), b)``; derivative one at the limits."""

hardsigmoid = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda site, x: (x + 3).clamp(0, 6) / 6, nonnegative=always),
    _ramp(lambda site: (-3.0, 3.0), _single(1 / 6)),
)
"""``min(max(x + 3, 0), 6) / 6``; derivative zero at the limits, and inside 1/6 as torch has it, in single precision."""

hardswish = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda site, x: x * ((x + 3).clamp(0, 6) / 6), turns=lambda site: [(-1.5, -0.375)]),
    PiecewiseMonotoneFunction(
        lambda site, x: torch.where(x <= -3, 0.0, torch.where(x < 3, x / 3 + 0.5, 1.0)),
        turns=lambda site: [(-3.0, 0.0), (-3.0, -0.5), (3.0, 1.5), (3.0, 1.0)],
    ),
)
"""``x min(max(x + 3, 0), 6) / 6``; the derivative jumps at ±3, where versions of torch differ and both values count."""


# --- exponential -----------------------------------------------------------------------------------------------------


def _elu(
    settings: Callable[[Site], tuple[float, float, float]],
    slope_settings: Callable[[Site], tuple[float, float, float]] | None = None,
) -> PiecewiseMonotone:
    """``s x`` above zero, ``s α (exp(c x) - 1)`` elsewhere, for settings (α, s, c); derivative ``s α c`` at zero."""
    of_slope = slope_settings or settings

    def value(site: Site, x: Tensor) -> Tensor:
        alpha, scale, rate = settings(site)
        return torch.where(x > 0, x * scale, torch.expm1(x.clamp(max=0) * rate) * (alpha * scale))

    def slope(site: Site, x: Tensor) -> Tensor:
        alpha, scale, rate = of_slope(site)
        return torch.where(x > 0, scale, torch.exp(x.clamp(max=0) * rate) * (alpha * scale * rate))

    def edge(site: Site) -> float:
        return math.prod(of_slope(site))

    return PiecewiseMonotone(
        PiecewiseMonotoneFunction(value, lambda site: [(0.0, 0.0)]),
        PiecewiseMonotoneFunction(
            slope, lambda site: [(0.0, edge(site))], lambda site: edge(site) >= 0 and settings(site)[1] >= 0
        ),
    )


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

elu = _elu(lambda site: (site.number("alpha"), site.number("scale"), site.number("input_scale")))
"""``x`` above zero, ``α (exp(x) - 1)`` elsewhere."""

selu = _elu(lambda site: (_SELU_ALPHA, _SELU_SCALE, 1.0))
"""``elu`` with the two constants of self-normalizing networks."""

celu = _elu(
    lambda site: (site.number("alpha"), 1.0, 1 / site.number("alpha")),
    lambda site: (site.number("alpha"), 1.0, 1 / _single(site.number("alpha"))),
)
"""``x`` above zero, ``α (exp(x / α) - 1)`` elsewhere; torch rounds α to single precision in the derivative's rate."""


def _sech_squared(x: Tensor) -> Tensor:
    return x.cosh().square().reciprocal()


tanh = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda site, x: x.tanh()),
    PiecewiseMonotoneFunction(lambda site, x: _sech_squared(x), lambda site: [(0.0, 1.0)], always),
)
"""``tanh x`` with derivative ``1 / cosh² x``, largest at zero."""

sigmoid = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda site, x: x.sigmoid(), nonnegative=always),
    PiecewiseMonotoneFunction(lambda site, x: x.sigmoid() * (-x).sigmoid(), lambda site: [(0.0, 0.25)], always),
)
"""``σ(x)`` with derivative ``σ(x) σ(-x)``, largest at zero."""

log_sigmoid = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda site, x: -exact_softplus(-x)),
    PiecewiseMonotoneFunction(lambda site, x: (-x).sigmoid(), nonnegative=always),
)
"""``log σ(x)`` with derivative ``σ(-x)``."""


def _softplus(site: Site, x: Tensor) -> Tensor:
    beta = site.number("beta")
    return torch.where(x * beta > site.number("threshold"), x, exact_softplus(x * beta) / beta)


def _softplus_slope(site: Site, x: Tensor) -> Tensor:
    scaled = x * site.number("beta")
    return torch.where(scaled > site.number("threshold"), 1.0, scaled.sigmoid())


def _softplus_jump(site: Site) -> Sequence[Turn]:
    """Above the threshold torch drops to x itself."""
    beta, threshold = site.number("beta"), site.number("threshold")
    return [(threshold / beta, threshold / beta), (threshold / beta, _at(exact_softplus, threshold) / beta)]


def _softplus_slope_jump(site: Site) -> Sequence[Turn]:
    beta, threshold = site.number("beta"), site.number("threshold")
    return [(threshold / beta, 1.0), (threshold / beta, _at(torch.sigmoid, threshold))]


softplus = PiecewiseMonotone(
    PiecewiseMonotoneFunction(
        _softplus, _softplus_jump, lambda site: site.number("beta") > 0 and site.number("threshold") >= 0
    ),
    PiecewiseMonotoneFunction(_softplus_slope, _softplus_slope_jump, always),
)
"""``log(1 + exp(β x)) / β``, and x where torch puts it, above ``β x = threshold``, both sides of that jump included."""


# --- with one minimum ------------------------------------------------------------------------------------------------


def _silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def _silu_slope(x: Tensor) -> Tensor:
    return x.sigmoid() * (1 + x * (-x).sigmoid())


_SILU_MINIMUM = _turn(_silu, root(_silu_slope, -2.0, -1.0))
_SILU_STEEPEST = root(lambda x: x * torch.tanh(x / 2) - 2, 1.0, 4.0)
_SILU_SLOPE_TURNS = [_turn(_silu_slope, -_SILU_STEEPEST), _turn(_silu_slope, _SILU_STEEPEST)]

silu = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda site, x: _silu(x), lambda site: [_SILU_MINIMUM]),
    PiecewiseMonotoneFunction(lambda site, x: _silu_slope(x), lambda site: _SILU_SLOPE_TURNS),
)
"""``x σ(x)``, least at x = -1.278; derivative ``σ(x) (1 + x σ(-x))`` with turns where ``x tanh(x / 2) = 2``."""


def _area(x: Tensor) -> Tensor:
    """``Φ(x)``, the normal distribution function, accurate in both tails."""
    area: Tensor = torch.special.ndtr(x)
    return area


def _gelu(x: Tensor) -> Tensor:
    return x * _area(x)


def _gelu_slope(x: Tensor) -> Tensor:
    """``Φ(x) + x φ(x)``."""
    return _area(x) + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


_TANH_GELU_CUBE = 0.044715
_TANH_GELU_RATE = math.sqrt(2 / math.pi)


def _tanh_gelu(x: Tensor) -> Tensor:
    """``x σ(2 v)`` with ``v = c (x + a x³)``: the same as ``x (1 + tanh v) / 2`` without its cancellation."""
    return x * torch.sigmoid(2 * _TANH_GELU_RATE * (x + _TANH_GELU_CUBE * x * x.square()))


def _tanh_gelu_slope(x: Tensor) -> Tensor:
    """``(1 + tanh v) / 2 + x v' / (2 cosh² v)``; beyond ±30 it is zero or one in every floating point type."""
    x = x.clamp(-30.0, 30.0)
    v = _TANH_GELU_RATE * (x + _TANH_GELU_CUBE * x * x.square())
    rate = _TANH_GELU_RATE * (1 + 3 * _TANH_GELU_CUBE * x.square())
    return torch.sigmoid(2 * v) + 2 * x * rate * torch.sigmoid(2 * v) * torch.sigmoid(-2 * v)


def _tanh_gelu_bend(x: Tensor) -> Tensor:
    """The second derivative over ``1 / cosh² v``: ``v' + x (v'' / 2 - v'² tanh v)``."""
    v = _TANH_GELU_RATE * (x + _TANH_GELU_CUBE * x * x.square())
    rate = _TANH_GELU_RATE * (1 + 3 * _TANH_GELU_CUBE * x.square())
    return rate + x * (3 * _TANH_GELU_RATE * _TANH_GELU_CUBE * x - rate.square() * v.tanh())


_GELU_STEEPEST = math.sqrt(2)
_TANH_GELU_STEEPEST = root(_tanh_gelu_bend, 1.0, 2.0)
_GELUS = {"none": (_gelu, _gelu_slope), "tanh": (_tanh_gelu, _tanh_gelu_slope)}
_GELU_TURNS = {kind: [_turn(value, root(slope, -1.0, -0.5))] for kind, (value, slope) in _GELUS.items()}
_GELU_SLOPE_TURNS = {
    "none": [_turn(_gelu_slope, -_GELU_STEEPEST), _turn(_gelu_slope, _GELU_STEEPEST)],
    "tanh": [_turn(_tanh_gelu_slope, -_TANH_GELU_STEEPEST), _turn(_tanh_gelu_slope, _TANH_GELU_STEEPEST)],
}


def _kind(site: Site) -> str:
    return str(site["approximate"])


gelu = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda site, x: _GELUS[_kind(site)][0](x), lambda site: _GELU_TURNS[_kind(site)]),
    PiecewiseMonotoneFunction(lambda site, x: _GELUS[_kind(site)][1](x), lambda site: _GELU_SLOPE_TURNS[_kind(site)]),
)
"""``x Φ(x)``, least at x = -0.752; derivative ``Φ(x) + x φ(x)`` with turns at ±√2; or its form with tanh."""


# --- functions of arithmetic -----------------------------------------------------------------------------------------


def _positive(x: Interval) -> Tensor:
    return x.lower > 0


def _one_sided(x: Interval) -> Tensor:
    return (x.lower > 0) | (x.upper < 0)


exponential = Monotone(function=lambda site, x: x.exp(), derivative=lambda site, x: x.exp(), nonnegative=True)
"""``exp x``."""

logarithm = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda site, x: x.log()),
    PiecewiseMonotoneFunction(lambda site, x: 1 / x, nonnegative=always),
    _positive,
)
"""``log x`` of positive values."""

square_root = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda site, x: x.sqrt(), nonnegative=always),
    PiecewiseMonotoneFunction(lambda site, x: 0.5 / x.sqrt(), nonnegative=always),
    _positive,
)
"""``√x`` of positive values."""

reciprocal_root = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda site, x: x.rsqrt(), nonnegative=always),
    PiecewiseMonotoneFunction(lambda site, x: -0.5 * x.rsqrt() / x),
    _positive,
)
"""``1 / √x`` of positive values."""

reciprocal = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda site, x: 1 / x),
    PiecewiseMonotoneFunction(lambda site, x: -1 / x.square()),
    _one_sided,
)
"""``1 / x`` on one side of zero."""

error_function = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda site, x: x.erf()),
    PiecewiseMonotoneFunction(
        lambda site, x: torch.exp(-x.square()) * (2 / math.sqrt(math.pi)),
        lambda site: [(0.0, 2 / math.sqrt(math.pi))],
        always,
    ),
)
"""``erf x`` with derivative ``2 exp(-x²) / √π``, largest at zero."""
