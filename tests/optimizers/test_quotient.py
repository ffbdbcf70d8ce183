"""The adaptive step's quotient: exact against a dense grid."""

import pytest
import torch

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval
from agt_lightning.optimizers.base import change_of
from agt_lightning.optimizers.quotient import accumulated, quotient

CASES = 200
OUTSIDE = 1e-12
RESOLUTION = 2e-3
"""The grid, 0.5% from point to point on a logarithmic scale, misses the peak by less than this share of its height."""


def intervals(generator, *, positive=False):
    ends = torch.randn(2, CASES, generator=generator, dtype=torch.float64)
    ends = ends * 10.0 ** torch.randint(-2, 2, (CASES,), generator=generator)
    ends = ends.square() if positive else ends
    return Interval(ends.amin(dim=0), ends.amax(dim=0))


def points(interval):
    sizes = torch.logspace(-9, 4, 6000, dtype=torch.float64)
    grid = torch.cat([-sizes, sizes, torch.zeros(1, dtype=torch.float64)])[:, None]
    return torch.minimum(torch.maximum(grid, interval.lower), interval.upper)


def brute(offset, slope, base, curvature, shift, x, floor):
    """f at a fine grid of x, and at the ends of everything that is monotone."""
    at, low, high = points(x), torch.inf, -torch.inf
    for v in (base.lower, base.upper):
        for m in (floor.lower, floor.upper):
            divisor = torch.maximum(m, v + curvature * at.square()).sqrt() + shift
            low = torch.minimum(torch.as_tensor(low), ((offset.lower + slope * at) / divisor).amin(dim=0))
            high = torch.maximum(torch.as_tensor(high), ((offset.upper + slope * at) / divisor).amax(dim=0))
    return low, high


@pytest.mark.parametrize("shift", [1e-8, 0.1, 3.0])
@pytest.mark.parametrize("slope", [0.1, 0.9])
@pytest.mark.parametrize("with_floor", [False, True])
@pytest.mark.parametrize("from_zero", [False, True])
def test_quotient_is_exact(shift, slope, with_floor, from_zero):
    generator = torch.Generator().manual_seed(0)
    offset, x = intervals(generator), intervals(generator)
    base, floor = intervals(generator, positive=True), intervals(generator, positive=True)
    base = Interval(base.lower * (not from_zero), base.upper)
    floor = floor if with_floor else Interval.point(torch.zeros(CASES, dtype=torch.float64))
    got = quotient(offset, slope, base, 0.05, shift, x, floor if with_floor else None)
    low, high = brute(offset, slope, base, 0.05, shift, x, floor)
    assert float((high - got.upper).max() / high.abs().max()) <= OUTSIDE
    assert float((got.lower - low).max() / low.abs().max()) <= OUTSIDE
    if not from_zero or shift >= 0.1:
        height = torch.maximum(high.abs(), low.abs())
        assert float(((got.upper - high) / height).max()) <= RESOLUTION
        assert float(((low - got.lower) / height).max()) <= RESOLUTION


@pytest.mark.parametrize("size", [2.0**-400, 2.0**400])
@pytest.mark.parametrize("with_floor", [False, True])
def test_the_peak_is_found_for_gradients_of_any_size(size, with_floor):
    """f stays if A, x, e and the roots of V and M get one factor; cubes of A would underflow or overflow."""
    generator = torch.Generator().manual_seed(1)
    offset, x = intervals(generator), intervals(generator)
    base, floor = intervals(generator, positive=True), intervals(generator, positive=True)
    plain = quotient(offset, 0.1, base, 0.05, 1e-8, x, floor if with_floor else None)
    base, floor = base.scaled(size**2), floor.scaled(size**2)
    got = quotient(
        offset.scaled(size),
        0.1,
        base,
        0.05,
        1e-8 * size,
        x.scaled(size),
        floor if with_floor else None,
        arithmetic=Arithmetic(None, torch.float64),
    )
    assert bool((got.lower <= plain.center - plain.radius * (1 - OUTSIDE)).all())
    assert bool((got.upper >= plain.center + plain.radius * (1 - OUTSIDE)).all())


def test_points_grow_by_rounding_alone():
    one = Interval.point(torch.ones(2, dtype=torch.float64))
    assert float(quotient(one, 0.1, one, 0.1, 0.1, one).width.max()) < 1e-12
    assert float(quotient(one, 0.1, one, 0.1, 0.1, one, one).width.max()) < 1e-12


def test_what_underflows_in_the_type_of_the_bounds_alone_is_no_zero():
    """A run in double precision has 1e-50 and 1e-61, which bounds in single precision cannot hold."""
    arithmetic = Arithmetic(torch.float64, torch.float32)
    tiny, zero = Interval.point(torch.tensor([1e-30])), Interval.point(torch.zeros(1))
    assert change_of(tiny, 1e-20, arithmetic, 4).upper > 1e-50
    assert accumulated(zero, 0.9, tiny, 0.1, arithmetic).upper > 1e-61
    assert change_of(zero, 1e-20, arithmetic, 4).upper == accumulated(zero, 0.9, zero, 0.1, arithmetic).upper == 0
