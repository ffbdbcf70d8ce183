"""Activation functions and other functions of one real number; value and derivative are exact over every interval.

Turns without a closed form are roots of a derivative, found by bisection down to neighboring floating point numbers
when the module is imported. An error ε in the position of an extremum changes the value by O(ε²), less than rounding.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from agt_lightning.arithmetic import softplus as exact_softplus
from agt_lightning.arithmetic.compiled import flat, heaviside_products
from agt_lightning.capture.graph import VALUE_ONLY
from agt_lightning.interval import Interval
from agt_lightning.rules.base import Site
from agt_lightning.rules.elementary import ElementaryFunction, KernelError
from agt_lightning.rules.elementwise import Monotone, PiecewiseMonotone, PiecewiseMonotoneFunction, Turn
from agt_lightning.rules.roundings import EXACT, Roundings

_RELATIVE = KernelError(12)
"""Error of kernels that are right to a few units in the last place everywhere."""

_UNIT = KernelError(12, 12)
"""Error of derivatives that kernels compute by a difference from one, or by a sum of two terms of size one."""


def _linear(size: Tensor) -> Tensor:
    return 1 + size


def _identity(size: Tensor) -> Tensor:
    return size


def _of_tanh_form(size: Tensor) -> Tensor:
    """``1 + |x| + |x|³ / 8``: the rate of the argument of tanh times x, until tanh is one in every type."""
    size = size.clamp(max=12.0)
    return 1 + size + size * size.square() / 8


def heaviside_product(grad: Interval, x: Interval) -> Interval:
    """Return ``g h`` for h in ``[l > 0, u > 0]``, zero at zero as in autograd; exact.

    Args:
        grad: bounds on g.
        x: bounds [l, u] on the input; of the same shape, or of that behind an axis of samples that g alone has.

    Example:
        >>> grad, x = Interval(-torch.ones(3), torch.ones(3)), torch.tensor([-2.0, -1.0, 1.0])
        >>> heaviside_product(grad, Interval(x, x + 1.5)).upper
        tensor([0., 1., 1.])
    """
    if x.is_point:
        return grad.mapped(lambda bound: _masked(bound, x.lower), nonnegative=grad.nonnegative)
    if x.shape != grad.shape:  # the loop below reads both in step
        x = x.rearranged(lambda bound: bound.expand(grad.shape))
    arrays = flat(grad.lower, grad.upper, x.lower, x.upper)
    if arrays is not None:
        lower, upper = torch.empty_like(grad.lower), torch.empty_like(grad.lower)
        smallest, largest, start, end = arrays
        heaviside_products(smallest, largest, start, end, lower.numpy().reshape(-1), upper.numpy().reshape(-1))
    else:
        lower = torch.minimum(_masked(grad.lower, x.lower), _masked(grad.lower, x.upper))
        upper = torch.maximum(_masked(grad.upper, x.lower), _masked(grad.upper, x.upper))
    return Interval.trusted(lower, upper, nonnegative=grad.nonnegative)


def _masked(grad: Tensor, x: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.threshold_backward(grad, x, 0)
    return result


relu = Monotone(
    function=lambda x: torch.clamp(x, min=0),
    derivative=lambda x: (x > 0).to(x.dtype),
    nonnegative=True,
    product=heaviside_product,
    rounding=EXACT,
)
"""``max(x, 0)`` with derivative ``[l > 0, u > 0]``: section 3.4's Heaviside interval, zero at zero as in autograd."""


def root(function: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    """Return the root of a function between ``low`` and ``high``, to the last bit.

    Args:
        function: a function with one change of sign in between.
        low: lower end.
        high: upper end.

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
    """Return a point and the value of a continuous function there."""
    return point, _at(function, point)


def _single_precision(number: float) -> float:
    """Return the nearest number in single precision."""
    return float(torch.tensor(number, dtype=torch.float32))


# --- piecewise linear ------------------------------------------------------------------------------------------------

leaky_relu = PiecewiseMonotone(
    value=PiecewiseMonotoneFunction(
        lambda site, x: torch.where(x > 0, x, x * site.number("negative_slope")),
        turns=((0.0, 0.0),),
    ),
    slope=PiecewiseMonotoneFunction(
        lambda site, x: torch.where(x > 0, torch.ones_like(x), site.number("negative_slope")),
        nonnegative=lambda site: site.number("negative_slope") >= 0,
    ),
    rounding=ElementaryFunction(KernelError(4), KernelError(4)),
)
"""``x`` above zero, ``a x`` elsewhere; derivative a at zero."""


def _slope_between(
    limits: Callable[[Site], tuple[float, float]], gain: float = 1.0, *, either: bool = False
) -> PiecewiseMonotoneFunction:
    """Return the derivative that is ``gain`` between two limits and zero elsewhere; on them zero, or ``either``."""

    def slope(site: Site, x: Tensor) -> Tensor:
        low, high = limits(site)
        if site.call.arguments.get(VALUE_ONLY):
            return torch.full_like(x, gain)
        return ((x > low) & (x < high)).to(x.dtype) * gain

    def turns(site: Site) -> Sequence[Turn]:
        low, high = limits(site)
        if site.call.arguments.get(VALUE_ONLY):
            return []
        between = [((low + high) / 2, gain)] if -math.inf < low < high < math.inf else []
        on_limits = [(limit, gain) for limit in (low, high) if math.isfinite(limit)] if either and low <= high else []
        return [*between, *on_limits]

    return PiecewiseMonotoneFunction(slope, turns, nonnegative=True)


def _limits(low: str, high: str) -> Callable[[Site], tuple[float, float]]:
    """Return limits that are arguments of the call, infinite if they are left out."""

    def limits(site: Site) -> tuple[float, float]:
        given = site.call.arguments
        minimum, maximum = given.get(low), given.get(high)
        return (
            -math.inf if minimum is None else site.number(low),
            math.inf if maximum is None else site.number(high),
        )

    return limits


def _clamped(limits: Callable[[Site], tuple[float, float]], *, either: bool) -> PiecewiseMonotone:
    def value(site: Site, x: Tensor) -> Tensor:
        low, high = limits(site)
        return x.clamp(min=low, max=high)

    return PiecewiseMonotone(
        PiecewiseMonotoneFunction(value, nonnegative=lambda site: min(limits(site)) >= 0),
        _slope_between(limits, either=either),
        rounding=ElementaryFunction(KernelError(2), KernelError(0), input=2),
    )


hardtanh = _clamped(_limits("min_val", "max_val"), either=False)
"""``min(max(x, a), b)``; derivative zero at the limits."""

relu6 = _clamped(lambda site: (0.0, 6.0), either=False)
"""``min(max(x, 0), 6)``; derivative zero at the limits."""

clamp = _clamped(_limits("min", "max"), either=True)
"""``min(max(x, a), b)``; at the limits versions of torch have derivatives of zero and of one, and both count.

Where the recorded code cuts the value alone, as `cosine_similarity` does with norms, the derivative is one.
"""

hardsigmoid = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda x: (x + 3).clamp(0, 6) / 6, nonnegative=True),
    _slope_between(lambda site: (-3.0, 3.0), _single_precision(1 / 6)),
    rounding=ElementaryFunction(KernelError(4), KernelError(2)),
)
"""``min(max(x + 3, 0), 6) / 6``; derivative zero at the limits, and inside 1/6 as torch has it, in single precision."""

hardswish = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda x: x * ((x + 3).clamp(0, 6) / 6), turns=((-1.5, -0.375),)),
    PiecewiseMonotoneFunction(
        lambda x: torch.where(x <= -3, 0.0, torch.where(x < 3, x / 3 + 0.5, 1.0)),
        turns=((-3.0, 0.0), (-3.0, -0.5), (3.0, 1.5), (3.0, 1.0)),
    ),
    rounding=ElementaryFunction(KernelError(6), _UNIT),
)
"""``x min(max(x + 3, 0), 6) / 6``; the derivative jumps at ±3, where versions of torch differ and both values count."""


def _outside(site: Site, x: Tensor) -> Tensor:
    """Return whether x is beyond ±λ."""
    return x.abs() > site.number("lambd")


def _ends(*values: Callable[[float], float]) -> Callable[[Site], Sequence[Turn]]:
    """Return turns at ±λ with values that are functions of the position there."""

    def turns(site: Site) -> Sequence[Turn]:
        limit = site.number("lambd")
        return [(end, value(end)) for end in (-limit, limit) for value in values]

    return turns


hardshrink = PiecewiseMonotone(
    PiecewiseMonotoneFunction(
        lambda site, x: torch.where(_outside(site, x), x, 0.0), _ends(lambda x: x, lambda x: 0.0)
    ),
    PiecewiseMonotoneFunction(
        lambda site, x: _outside(site, x).to(x.dtype), _ends(lambda x: 0.0, lambda x: 1.0), nonnegative=True
    ),
    rounding=ElementaryFunction(KernelError(0), KernelError(0), input=2),
)
"""``x`` beyond ±λ, zero between; at the limits both sides of the jump count."""

softshrink = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda site, x: x - x.clamp(-site.number("lambd"), site.number("lambd"))),
    PiecewiseMonotoneFunction(
        lambda site, x: _outside(site, x).to(x.dtype), _ends(lambda x: 0.0, lambda x: 1.0), nonnegative=True
    ),
    rounding=ElementaryFunction(KernelError(2, 4, _linear), KernelError(0), input=2),
)
"""``x`` moved by λ towards zero, zero between ±λ; at the limits derivatives of zero and of one count."""

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

    def slope_at_zero(site: Site) -> float:
        return math.prod(of_slope(site))

    def rounding(site: Site) -> Roundings:
        """In place, a kernel computes the slope from the result, ``c (f(x) + s α)``."""
        return ElementaryFunction(_RELATIVE, KernelError(12, 12 * math.ceil(max(1.0, 2 * abs(slope_at_zero(site))))))

    return PiecewiseMonotone(
        PiecewiseMonotoneFunction(value, [(0.0, 0.0)]),
        PiecewiseMonotoneFunction(
            slope,
            lambda site: [(0.0, slope_at_zero(site))],
            lambda site: slope_at_zero(site) >= 0 and settings(site)[1] >= 0,
        ),
        rounding=rounding,
    )


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

elu = _elu(lambda site: (site.number("alpha"), site.number("scale"), site.number("input_scale")))
"""``x`` above zero, ``α (exp(x) - 1)`` elsewhere."""

selu = _elu(lambda site: (_SELU_ALPHA, _SELU_SCALE, 1.0))
"""``elu`` with the two constants of self-normalizing networks."""

celu = _elu(
    lambda site: (site.number("alpha"), 1.0, 1 / site.number("alpha")),
    lambda site: (site.number("alpha"), 1.0, 1 / _single_precision(site.number("alpha"))),
)
"""``x`` above zero, ``α (exp(x / α) - 1)`` elsewhere; torch rounds α to single precision in the derivative's rate."""


def _sech_squared(x: Tensor) -> Tensor:
    return x.cosh().square().reciprocal()


tanh = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.tanh),
    PiecewiseMonotoneFunction(_sech_squared, [(0.0, 1.0)], nonnegative=True),
    rounding=ElementaryFunction(_RELATIVE, _UNIT),
)
"""``tanh x`` with derivative ``1 / cosh² x``, largest at zero."""

sigmoid = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.sigmoid, nonnegative=True),
    PiecewiseMonotoneFunction(lambda x: x.sigmoid() * (-x).sigmoid(), [(0.0, 0.25)], nonnegative=True),
    rounding=ElementaryFunction(_RELATIVE, _UNIT),
)
"""``σ(x)`` with derivative ``σ(x) σ(-x)``, largest at zero."""

log_sigmoid = PiecewiseMonotone(
    PiecewiseMonotoneFunction(lambda x: -exact_softplus(-x)),
    PiecewiseMonotoneFunction(lambda x: (-x).sigmoid(), nonnegative=True),
    rounding=ElementaryFunction(_RELATIVE, _UNIT),
)
"""``log σ(x)`` with derivative ``σ(-x)``."""


def _softplus(site: Site, x: Tensor) -> Tensor:
    beta = site.number("beta")
    return torch.where(x * beta > site.number("threshold"), x, exact_softplus(x * beta) / beta)


def _softplus_slope(site: Site, x: Tensor) -> Tensor:
    scaled = x * site.number("beta")
    return torch.where(scaled > site.number("threshold"), 1.0, scaled.sigmoid())


def _softplus_jump(site: Site) -> Sequence[Turn]:
    """Both sides of the jump at the threshold, above which torch returns x itself."""
    beta, threshold = site.number("beta"), site.number("threshold")
    return [(threshold / beta, threshold / beta), (threshold / beta, _at(exact_softplus, threshold) / beta)]


def _softplus_slope_jump(site: Site) -> Sequence[Turn]:
    beta, threshold = site.number("beta"), site.number("threshold")
    return [(threshold / beta, 1.0), (threshold / beta, _at(torch.sigmoid, threshold))]


def _softplus_rounding(site: Site) -> Roundings:
    """What underflows in the logarithm is divided by β."""
    return ElementaryFunction(KernelError(12, underflows=1 + 1 / abs(site.number("beta"))), _UNIT, input=4)


softplus = PiecewiseMonotone(
    PiecewiseMonotoneFunction(
        _softplus, _softplus_jump, lambda site: site.number("beta") > 0 and site.number("threshold") >= 0
    ),
    PiecewiseMonotoneFunction(_softplus_slope, _softplus_slope_jump, nonnegative=True),
    rounding=_softplus_rounding,
)
"""``log(1 + exp(β x)) / β``, and x where torch puts it, above ``β x = threshold``, both sides of that jump included."""


# --- with one minimum ------------------------------------------------------------------------------------------------


def _silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def _silu_slope(x: Tensor) -> Tensor:
    return x.sigmoid() * (1 + x * (-x).sigmoid())


_SILU_MINIMUM = _turn(_silu, root(_silu_slope, -2.0, -1.0))
_SILU_STEEPEST = root(lambda x: x * torch.tanh(x / 2) - 2, 1.0, 4.0)
_SILU_SLOPE_TURNS = (_turn(_silu_slope, -_SILU_STEEPEST), _turn(_silu_slope, _SILU_STEEPEST))

silu = PiecewiseMonotone(
    PiecewiseMonotoneFunction(_silu, (_SILU_MINIMUM,)),
    PiecewiseMonotoneFunction(_silu_slope, _SILU_SLOPE_TURNS),
    rounding=ElementaryFunction(_RELATIVE, KernelError(12, 12, _linear)),
)
"""``x σ(x)``, least at x = -1.278; derivative ``σ(x) (1 + x σ(-x))`` with turns where ``x tanh(x / 2) = 2``."""


def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(exact_softplus(x))


def _mish_slope(x: Tensor) -> Tensor:
    """``t + x σ(x) (1 - t²)`` with ``t = tanh(softplus x)``; 1 - t² without cancellation."""
    inner = exact_softplus(x)
    return torch.tanh(inner) + x * x.sigmoid() * _sech_squared(inner)


def _mish_curvature(x: Tensor) -> Tensor:
    """The second derivative over ``σ(x) (1 - t²)``: ``2 + x (σ(-x) - 2 t σ(x))``."""
    return 2 + x * ((-x).sigmoid() - 2 * torch.tanh(exact_softplus(x)) * x.sigmoid())


_MISH_MINIMUM = _turn(_mish, root(_mish_slope, -2.0, -0.5))
_MISH_SLOPE_TURNS = tuple(_turn(_mish_slope, root(_mish_curvature, *ends)) for ends in ((-4.0, -1.5), (0.5, 3.0)))

mish = PiecewiseMonotone(
    PiecewiseMonotoneFunction(_mish, (_MISH_MINIMUM,)),
    PiecewiseMonotoneFunction(_mish_slope, _MISH_SLOPE_TURNS),
    rounding=ElementaryFunction(KernelError(24), KernelError(24, 24, _linear)),
)
"""``x tanh(log(1 + exp x))``, least at x = -1.192; the derivative turns at -2.257 and 1.491."""


def _normal_cdf(x: Tensor) -> Tensor:
    """``Φ(x)``, the normal distribution function, accurate in both tails."""
    cdf: Tensor = torch.special.ndtr(x)
    return cdf


def _gelu(x: Tensor) -> Tensor:
    return x * _normal_cdf(x)


def _gelu_slope(x: Tensor) -> Tensor:
    """``Φ(x) + x φ(x)``."""
    return _normal_cdf(x) + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


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


def _tanh_gelu_curvature(x: Tensor) -> Tensor:
    """The second derivative over ``1 / cosh² v``: ``v' + x (v'' / 2 - v'² tanh v)``."""
    v = _TANH_GELU_RATE * (x + _TANH_GELU_CUBE * x * x.square())
    rate = _TANH_GELU_RATE * (1 + 3 * _TANH_GELU_CUBE * x.square())
    return rate + x * (3 * _TANH_GELU_RATE * _TANH_GELU_CUBE * x - rate.square() * v.tanh())


_GELU_STEEPEST = math.sqrt(2)
_TANH_GELU_STEEPEST = root(_tanh_gelu_curvature, 1.0, 2.0)
_GELUS = {"none": (_gelu, _gelu_slope), "tanh": (_tanh_gelu, _tanh_gelu_slope)}
_GELU_TURNS = {kind: [_turn(value, root(slope, -1.0, -0.5))] for kind, (value, slope) in _GELUS.items()}
_GELU_SLOPE_TURNS = {
    "none": [_turn(_gelu_slope, -_GELU_STEEPEST), _turn(_gelu_slope, _GELU_STEEPEST)],
    "tanh": [_turn(_tanh_gelu_slope, -_TANH_GELU_STEEPEST), _turn(_tanh_gelu_slope, _TANH_GELU_STEEPEST)],
}


def _approximation(site: Site) -> str:
    return str(site["approximate"])


gelu = PiecewiseMonotone(
    PiecewiseMonotoneFunction(
        lambda site, x: _GELUS[_approximation(site)][0](x), lambda site: _GELU_TURNS[_approximation(site)]
    ),
    PiecewiseMonotoneFunction(
        lambda site, x: _GELUS[_approximation(site)][1](x), lambda site: _GELU_SLOPE_TURNS[_approximation(site)]
    ),
    rounding=ElementaryFunction(KernelError(12, 12, _identity), KernelError(12, 24, _of_tanh_form)),
)
"""``x Φ(x)``, least at x = -0.752; derivative ``Φ(x) + x φ(x)`` with turns at ±√2; or its form with tanh."""


# --- functions of arithmetic -----------------------------------------------------------------------------------------


def _positive(x: Interval) -> Tensor:
    return x.lower > 0


def _one_sided(x: Interval) -> Tensor:
    return (x.lower > 0) | (x.upper < 0)


exponential = Monotone(
    function=torch.exp,
    derivative=torch.exp,
    nonnegative=True,
    rounding=ElementaryFunction(_RELATIVE, _RELATIVE),
)
"""``exp x``; where it underflows, so does the derivative, which gradients are multiplied with."""

logarithm = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.log),
    PiecewiseMonotoneFunction(torch.reciprocal, nonnegative=True),
    _positive,
    rounding=ElementaryFunction(KernelError(12, 2), KernelError(4)),
)
"""``log x`` of positive values."""

square_root = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.sqrt, nonnegative=True),
    PiecewiseMonotoneFunction(lambda x: 0.5 / x.sqrt(), nonnegative=True),
    _positive,
    rounding=ElementaryFunction(KernelError(4), KernelError(8)),
)
"""``√x`` of positive values."""

reciprocal_root = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.rsqrt, nonnegative=True),
    PiecewiseMonotoneFunction(lambda x: -0.5 * x.rsqrt() / x),
    _positive,
    rounding=ElementaryFunction(KernelError(6), KernelError(12)),
)
"""``1 / √x`` of positive values."""

reciprocal = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.reciprocal),
    PiecewiseMonotoneFunction(lambda x: -1 / x.square()),
    _one_sided,
    rounding=ElementaryFunction(KernelError(4), KernelError(8)),
)
"""``1 / x`` on one side of zero."""

error_function = PiecewiseMonotone(
    PiecewiseMonotoneFunction(torch.erf),
    PiecewiseMonotoneFunction(
        lambda x: torch.exp(-x.square()) * (2 / math.sqrt(math.pi)),
        [(0.0, 2 / math.sqrt(math.pi))],
        nonnegative=True,
    ),
    rounding=ElementaryFunction(_RELATIVE, KernelError(12, 24)),
)
"""``erf x`` with derivative ``2 exp(-x²) / √π``, largest at zero."""
