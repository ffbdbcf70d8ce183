"""Slow, obviously exact interval arithmetic, and the checks that fast arithmetic must pass."""

import itertools
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from agt_lightning.interval import Interval
from agt_lightning.rounding import unit_roundoff

ROUNDINGS = 64
"""Roundings of a product sum of fewer than 12 terms in four parts and a correction, with room to spare."""

Product = Callable[[Interval, Interval], Interval]


@st.composite
def boxes(draw: st.DrawFn, rows: int, columns: int, *, scale: float = 1.0) -> Interval:
    """A (rows, columns) box of one of the kinds that products treat differently."""
    kind = draw(
        st.sampled_from(["signed", "straddling", "point", "unmarked point", "nonnegative", "nonnegative point"])
    )
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, rows, columns, generator=generator, dtype=torch.float64) * scale
    # Zeros are where sign splitting can go wrong.
    first = torch.where(torch.rand(rows, columns, generator=generator) < 0.15, torch.zeros_like(first), first)
    lower, upper = torch.minimum(first, second), torch.maximum(first, second)
    if kind == "signed":
        return Interval(lower, upper)
    if kind == "straddling":
        return Interval(-lower.abs(), upper.abs())
    if kind == "point":
        return Interval.point(first)
    if kind == "unmarked point":
        return Interval(first, first.clone())
    if kind == "nonnegative":
        return Interval(
            torch.minimum(first.abs(), second.abs()), torch.maximum(first.abs(), second.abs()), nonnegative=True
        )
    return Interval.point(first.abs(), nonnegative=True)


def corner_products(a: Interval, b: Interval) -> Interval:
    """Smallest and largest of the four corner products, element by element, with broadcasting."""
    products = [x * y for x, y in itertools.product((a.lower, a.upper), (b.lower, b.upper))]
    stacked = torch.stack(torch.broadcast_tensors(*products))
    return Interval(stacked.amin(dim=0), stacked.amax(dim=0))


def slow_product(a: Interval, b: Interval) -> Interval:
    """Every term ``a_mk b_kn`` at its own best corner, summed over k."""
    terms = corner_products(_axis(a, 1), _axis(b.mT, 0))
    return Interval(terms.lower.sum(dim=-1), terms.upper.sum(dim=-1))


def _axis(value: Interval, dim: int) -> Interval:
    return Interval(value.lower.unsqueeze(dim), value.upper.unsqueeze(dim))


def midpoint_radius(a: Interval, b: Interval) -> Interval:
    """Rump's product: ``m_a m_b`` with radius ``|m_a| r_b + r_a (|m_b| + r_b)``."""
    center = a.center @ b.center
    radius = a.center.abs() @ b.radius + a.radius @ (b.center.abs() + b.radius)
    return Interval(center - radius, center + radius)


def magnitude_products(a: Interval, b: Interval) -> Tensor:
    """``Σ_k max |a_mk| max |b_kn|``, which rounding errors are relative to."""
    return a.magnitude @ b.magnitude


def require_equal(what: str, got: Interval, expected: Interval, size: Tensor) -> None:
    """Raise unless both bounds agree up to rounding, relative to ``size``; which also means exact."""
    tolerance = ROUNDINGS * unit_roundoff(got.dtype) * size
    for name, bound, oracle in (("lower", got.lower, expected.lower), ("upper", got.upper, expected.upper)):
        error = (bound - oracle).abs()
        assert bool((error <= tolerance).all()), f"{what}: {name} differs from the oracle by {error.max().item():.3g}"


def check_product(product: Product, a: Interval, b: Interval) -> None:
    """The product equals the slow one, and is nowhere wider than midpoint-radius."""
    got, size = product(a, b), magnitude_products(a, b)
    require_equal("product", got, slow_product(a, b), size)
    excess = got.width - midpoint_radius(a, b).width
    assert bool((excess <= 2 * ROUNDINGS * unit_roundoff(got.dtype) * size).all()), "wider than midpoint-radius"
