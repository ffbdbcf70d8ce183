"""Measure torch's kernels against their stated errors: which share of each is used, by functions and by sums.

    python -m tests.floats.kernels

prints the tables of docs/floats.md for this machine. In single precision the reference is the rule's own function in
double precision; in double precision, the same function with 50 digits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mpmath
import torch
from mpmath import mpf
from torch import Tensor
from torch.nn import functional as F

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.rounding import accumulated_roundoff, unit_roundoff
from agt_lightning.rules import RULES, Rule, Site, Value
from agt_lightning.rules.elementary import ElementaryFunction, KernelError
from tests.rules.float_laws import build, execute, in_double, rounded, widened_bounds
from tests.rules.laws import Box, Setting, draw_domain
from tests.rules.settings import SETTINGS

aten = torch.ops.aten
SINGLE = torch.float32
mpmath.mp.dps = 50

Real = Callable[[mpf], mpf]


@dataclass(frozen=True)
class Kernel:
    """A function of one number, as torch calls it and in real arithmetic.

    Args:
        name: shown in the table.
        op: whose rule states the error.
        call: the function of tensors.
        real: the function of numbers of any precision.
        low: smallest argument.
        high: largest argument.
        kinks: arguments at which the function or its derivative jumps, which are left out.
        slope: its derivative, where torch means another number than the true one.
    """

    name: str
    op: object
    call: Callable[[Tensor], Tensor]
    real: Real
    low: float = -120.0
    high: float = 120.0
    kinks: tuple[float, ...] = ()
    slope: Real | None = None

    def derivative(self, x: mpf) -> mpf:
        """Return the derivative that torch's autograd means."""
        return self.slope(x) if self.slope else mpmath.diff(self.real, x, h=mpf(10) ** -20)


def _sigmoid(x: mpf) -> mpf:
    return 1 / (1 + mpmath.exp(-x))


def _softplus(x: mpf) -> mpf:
    return mpmath.log1p(mpmath.exp(x))


def _elu(alpha: float, scale: float = 1.0, rate: float = 1.0) -> Real:
    return lambda x: scale * x if x > 0 else mpf(alpha) * scale * mpmath.expm1(x * mpf(rate))


def _normal(x: mpf) -> mpf:
    return mpmath.erfc(-x / mpmath.sqrt(2)) / 2


def _tanh_gelu(x: mpf) -> mpf:
    return x * _sigmoid(2 * mpmath.sqrt(2 / mpmath.pi) * (x + mpf("0.044715") * x**3))


def _hardsigmoid(x: mpf) -> mpf:
    return min(max(x + 3, mpf(0)), mpf(6)) / 6


def _hardsigmoid_slope(x: mpf) -> mpf:
    return mpf(float(torch.tensor(1 / 6))) if abs(x) < 3 else mpf(0)


_ALPHA, _SCALE = mpf("1.6732632423543772848170429916717"), mpf("1.0507009873554804934193349852946")

KERNELS = (
    Kernel("sigmoid", aten.sigmoid.default, torch.sigmoid, _sigmoid),
    Kernel("tanh", aten.tanh.default, torch.tanh, mpmath.tanh),
    Kernel("logsigmoid", aten.log_sigmoid.default, F.logsigmoid, lambda x: -_softplus(-x)),
    Kernel("softplus", aten.softplus.default, F.softplus, lambda x: x if x > 20 else _softplus(x), kinks=(20.0,)),
    Kernel("silu", aten.silu.default, F.silu, lambda x: x * _sigmoid(x)),
    Kernel("gelu", aten.gelu.default, F.gelu, lambda x: x * _normal(x)),
    Kernel("gelu (tanh)", aten.gelu.default, lambda x: F.gelu(x, approximate="tanh"), _tanh_gelu),
    Kernel("elu", aten.elu.default, F.elu, _elu(1.0), kinks=(0.0,)),
    Kernel(
        "elu (α = 100, in place)",
        aten.elu.default,
        lambda x: F.elu(x + 0, 100.0, inplace=True),
        _elu(100.0),
        kinks=(0.0,),
    ),
    Kernel("selu", aten.selu.default, F.selu, _elu(_ALPHA, _SCALE), kinks=(0.0,)),
    Kernel(
        "leaky_relu", aten.leaky_relu.default, F.leaky_relu, lambda x: x if x > 0 else mpf("0.01") * x, kinks=(0.0,)
    ),
    Kernel(
        "hardsigmoid",
        aten.hardsigmoid.default,
        F.hardsigmoid,
        _hardsigmoid,
        kinks=(-3.0, 3.0),
        slope=_hardsigmoid_slope,
    ),
    Kernel("hardswish", aten.hardswish.default, F.hardswish, lambda x: x * _hardsigmoid(x), kinks=(-3.0, 3.0)),
    Kernel("erf", aten.erf.default, torch.erf, mpmath.erf),
    Kernel("log", aten.log.default, torch.log, mpmath.log, low=1e-30),
    Kernel("sqrt", aten.sqrt.default, torch.sqrt, mpmath.sqrt, low=1e-30),
    Kernel("rsqrt", aten.rsqrt.default, torch.rsqrt, lambda x: 1 / mpmath.sqrt(x), low=1e-30),
    Kernel("reciprocal", aten.reciprocal.default, torch.reciprocal, lambda x: 1 / x, low=1e-30),
    Kernel("mish", aten.mish.default, F.mish, lambda x: x * mpmath.tanh(_softplus(x))),
    Kernel("sin", aten.sin.default, torch.sin, mpmath.sin),
    Kernel("cos", aten.cos.default, torch.cos, mpmath.cos),
    Kernel("atan", aten.atan.default, torch.atan, mpmath.atan),
    Kernel("sinh", aten.sinh.default, torch.sinh, mpmath.sinh, low=-80.0, high=80.0),
    Kernel("cosh", aten.cosh.default, torch.cosh, mpmath.cosh, low=-80.0, high=80.0),
    Kernel("asinh", aten.asinh.default, torch.asinh, mpmath.asinh),
    Kernel("erfc", aten.erfc.default, torch.erfc, mpmath.erfc, high=9.0),
    Kernel("exp2", aten.exp2.default, torch.exp2, lambda x: mpf(2) ** x),
    Kernel("expm1", aten.expm1.default, torch.expm1, mpmath.expm1, high=80.0),
    Kernel("log1p", aten.log1p.default, torch.log1p, mpmath.log1p, low=-0.9),
    Kernel("log2", aten.log2.default, torch.log2, lambda x: mpmath.log(x) / mpmath.log(2), low=1e-30),
    Kernel("log10", aten.log10.default, torch.log10, mpmath.log10, low=1e-30),
    Kernel("x³", aten.pow.Tensor_Scalar, lambda x: x**3, lambda x: x**3),
    Kernel("x^1.5", aten.pow.Tensor_Scalar, lambda x: x**1.5, lambda x: x ** mpf(1.5), low=1e-10),
    Kernel("x^-2", aten.pow.Tensor_Scalar, lambda x: x**-2, lambda x: x**-2, low=1e-10),
)


@dataclass(frozen=True)
class Shares:
    """The largest error over the stated one, of a function and of its derivative."""

    value: float
    slope: float


def arguments(kernel: Kernel, count: int, dtype: torch.dtype) -> Tensor:
    """Return arguments of all sizes, and of size one, in a type."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(3, count, generator=generator, dtype=torch.float64)
    sizes = 10 ** (-8 + 10 * draw[0]) * torch.where(draw[1] < 0.5, -1.0, 1.0)
    x = torch.cat([sizes, 16 * (draw[2] - 0.5), draw[0] * (kernel.high - kernel.low) + kernel.low])
    x = x[(x > kernel.low) & (x < kernel.high)].to(dtype)
    for kink in kernel.kinks:
        x = x[(x - kink).abs() > 1e-5]
    return x


def shares(kernel: Kernel, dtype: torch.dtype, count: int) -> Shares:
    """Return which share of its stated error a kernel uses, on contiguous and on strided arguments.

    Args:
        kernel: the function.
        dtype: in which it runs.
        count: number of arguments of each kind.
    """
    setting = Setting(kernel.name, kernel.op, lambda m, x: kernel.call(x), (Box(),))
    program = build(setting, dtype, rounded())
    (name,) = (name for name, site in program.sites.items() if site.call.op is kernel.op)
    site, rule = program.sites[name], RULES[kernel.op]
    stated = rule.roundings(site)
    assert isinstance(stated, ElementaryFunction)
    points = arguments(kernel, count, dtype)
    exact = _in_double(rule, site, points) if dtype == torch.float32 else _with_digits(kernel, points)
    arithmetic = Arithmetic(dtype, torch.float64)
    found = [_largest(kernel, x, exact, stated, arithmetic) for x in (points, _strided(points))]
    return Shares(max(part.value for part in found), max(part.slope for part in found))


def _strided(x: Tensor) -> Tensor:
    return torch.stack([x, x, x], dim=1)[:, 1]


@dataclass(frozen=True)
class Exact:
    """A function at some arguments: the nearest numbers in double precision, and what they are short of."""

    nearest: Tensor
    rest: Tensor

    @classmethod
    def of(cls, numbers: list[mpf]) -> Exact:
        nearest = [float(number) for number in numbers]
        rest = [float(number - mpf(close)) for number, close in zip(numbers, nearest, strict=True)]
        return cls(torch.tensor(nearest, dtype=torch.float64), torch.tensor(rest, dtype=torch.float64))


def _largest(
    kernel: Kernel, x: Tensor, exact: tuple[Exact, Exact], stated: ElementaryFunction, arithmetic: Arithmetic
) -> Shares:
    x = x.detach().requires_grad_()
    found = kernel.call(x)
    (slope,) = torch.autograd.grad(found.sum(), x)
    sizes = x.detach().double().abs()
    value = _share(found.detach(), exact[0], sizes, stated.value, arithmetic)
    return Shares(value, _share(slope, exact[1], sizes, stated.slope, arithmetic))


def _share(found: Tensor, exact: Exact, sizes: Tensor, stated: KernelError, arithmetic: Arithmetic) -> float:
    """Return the largest error relative to what is stated, of the run alone."""
    allowed = arithmetic.run_relative(stated.relative) * exact.nearest.abs() + arithmetic.absolute()
    if stated.absolute:
        allowed = allowed + stated.scale(sizes) * arithmetic.run_relative(stated.absolute)
    return float(((found.double() - exact.nearest - exact.rest).abs() / allowed).max())


def _in_double(rule: Rule, site: Site, x: Tensor) -> tuple[Exact, Exact]:
    point = Interval.point(x.double())
    value = rule.forward(site, [point])
    (slope,) = rule.backward(site, Interval.point(torch.ones_like(point.lower)), [point], value)
    nothing = torch.zeros_like(point.lower)
    return Exact(value.lower, nothing), Exact(slope.lower, nothing)


def _with_digits(kernel: Kernel, x: Tensor) -> tuple[Exact, Exact]:
    numbers = [mpf(float(each)) for each in x]
    return Exact.of([kernel.real(each) for each in numbers]), Exact.of([kernel.derivative(each) for each in numbers])


def functions(count: int) -> Iterator[str]:
    """Yield the rows of the table of functions."""
    yield "| function | float32: value | slope | float64: value | slope |"
    yield "|---|---|---|---|---|"
    for kernel in KERNELS:
        single, double = shares(kernel, torch.float32, count), shares(kernel, torch.float64, min(count, 1000))
        parts = (single.value, single.slope, double.value, double.slope)
        yield f"| {kernel.name} | " + " | ".join(f"{part:.2f}" for part in parts) + " |"


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a[None] @ b[:, None]


def _convolution(a: Tensor, b: Tensor) -> Tensor:
    return F.conv1d(a.reshape(1, 1, -1), b.reshape(1, 1, -1))


SUMS = {
    "matrix product": _product,
    "convolution": _convolution,
    "sum": lambda a, b: (a * b).sum(),
}


def summands(kind: str, terms: int) -> tuple[Tensor, Tensor]:
    """Return factors of so many products: drawn at random, or one large and many that each vanish beside it."""
    generator = torch.Generator().manual_seed(1)
    if kind == "random":
        return torch.randn(terms, generator=generator), torch.randn(terms, generator=generator)
    small = torch.full((terms,), 0.99 * unit_roundoff(torch.float32))
    small[0] = 1.0
    return small, torch.ones(terms)


def sums(lengths: tuple[int, ...] = (64, 1024, 16384, 262144)) -> Iterator[str]:
    """Yield the rows of the table of sums of products, in single precision."""
    yield "| sum | summands | K | observed / γ_K | observed / (8 √K u) |"
    yield "|---|---|---|---|---|"
    unit = unit_roundoff(torch.float32)
    for name, add in SUMS.items():
        for kind in ("random", "vanishing"):
            for terms in lengths:
                a, b = summands(kind, terms)
                products = a.double() * b.double()
                observed = float((add(a, b).double() - products.sum()).abs().max() / products.abs().sum())
                gamma = accumulated_roundoff(terms, torch.float32)
                yield (
                    f"| {name} | {kind} | {terms} | {observed / gamma:.3f} | {observed / (8 * terms**0.5 * unit):.3f} |"
                )


def _point(value: Value) -> Tensor:
    if isinstance(value, ClassLabels):
        return value.index
    return value.lower if isinstance(value, Interval) else value


def rules(draws: int = 20) -> Iterator[str]:
    """Yield the rows of the table of rules: errors of runs on points, over half the width of their bounds."""
    largest: dict[str, float] = {}
    for setting in SETTINGS:
        program, plain = build(setting, SINGLE, rounded()), build(setting, SINGLE, rounded(floats="real"))
        for seed in range(draws):
            domain = draw_domain(setting, SINGLE, seed, scale=0.0)
            run = execute(setting, domain, SINGLE, _point)
            wide, exact = (widened_bounds(each, in_double(domain)) for each in (program, plain))
            pairs = [(run.output, wide.output, exact.output)]
            pairs += [
                (run.gradients[n], wide.gradients[n], exact.gradients[n]) for n in wide.gradients if n in run.gradients
            ]
            for value, bounds, centers in pairs:
                error = (value - centers.center).abs()
                share = torch.where(error == 0, 0.0, error / bounds.radius)
                kind = type(RULES[setting.op]).__name__
                largest[kind] = max(
                    largest.get(kind, 0.0),
                    float(torch.cat([share[centers.radius < 1e-3 * bounds.radius], torch.zeros(1)]).max()),
                )
    yield "| rule | observed / allowed |"
    yield "|---|---|"
    for kind, share in sorted(largest.items(), key=lambda item: -item[1]):
        yield f"| `{kind}` | {share:.2f} |"


if __name__ == "__main__":
    sys.stdout.write("\n".join([*functions(100_000), "", *sums(), "", *rules(), ""]))
