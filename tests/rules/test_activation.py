"""Ranges of activation functions, against dense samples and against autograd."""

import functools
from dataclasses import dataclass

import pytest
import torch

from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.propagation import propagate_forward
from agt_lightning.rules import RULES
from agt_lightning.rules.elementwise import PiecewiseMonotone, PiecewiseMonotoneFunction, evaluate
from tests.rules.laws import Box, Setting, build
from tests.rules.settings_elementwise import ACTIVATIONS
from tests.rules.settings_functions import FUNCTIONS, GROWING

SAMPLES = 4001
RESOLUTION = 2e-6
"""Between neighboring samples of a curve with second derivatives below 2, an extremum hides less than this."""

ENDS = [(-6.0, 6.0), (-2.0, 0.5), (-0.8, -0.7), (-3.5, -2.5), (0.0, 2.0), (-1.0, 0.0), (1.3, 1.5), (2.3, 2.5), (-9, -5)]
CURVES = [*ACTIVATIONS, *(curve for curve in [*FUNCTIONS, *GROWING] if isinstance(RULES[curve[0]], PiecewiseMonotone))]
NAMES = [f"{op} {use}" for op, use, _ in CURVES]


def first_site(op, function):
    """The site of the op in a captured call."""
    setting = Setting("range", op, lambda m, x: function(x), (Box(),))
    program = build(setting, RULES)
    return next(program.sites[call.name] for call in program.graph.calls if call.op is op)


@pytest.mark.parametrize(("op", "use", "function"), CURVES, ids=NAMES)
def test_range_of_value_and_derivative_is_the_smallest(op, use, function, subtests):
    rule, site = RULES[op], first_site(op, function)
    assert isinstance(rule, PiecewiseMonotone)
    for ends in ENDS:
        with subtests.test(ends=ends):
            require_smallest_range(rule, site, function, ends)


def require_smallest_range(rule, site, function, ends):
    """Raise unless the bounds over an interval are the extremes of value and derivative."""
    x = torch.linspace(*ends, SAMPLES, dtype=torch.float64, requires_grad=True)
    value = function(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    box = Interval(torch.tensor([float(ends[0])]).double(), torch.tensor([float(ends[1])]).double())
    for pieces, points in ((rule.value, value.detach()), (rule.slope, slope)):
        bounds = pieces.over(site, box)
        assert bounds.contains(points, 1e-14)
        assert_close_unless_jump(bounds, points)


def assert_close_unless_jump(bounds, points):
    """Samples come close to both bounds; beside a jump only within the largest step between samples."""
    steps = points.diff().abs()
    spacing = RESOLUTION + (float(steps.max()) if float(steps.max()) > 1e-2 else 0.0)
    assert float(bounds.lower) >= float(points.min()) - spacing
    assert float(bounds.upper) <= float(points.max()) + spacing


@pytest.mark.parametrize(("op", "use", "function"), ACTIVATIONS, ids=NAMES[: len(ACTIVATIONS)])
def test_bounds_are_finite_and_ordered_at_every_size(op, use, function, subtests):
    site = first_site(op, function)
    for dtype in (torch.float64, torch.float32):
        with subtests.test(dtype=dtype):
            require_ordered_bounds(RULES[op], site, dtype)


def require_ordered_bounds(rule, site, dtype):
    """Raise unless the bounds of the narrowest and of the widest boxes are finite and ordered."""
    sizes = torch.tensor([0.0, 1e-30, 1e-8, 0.75179152, 1.27846454, 3.0, 20.0, 90.0, 800.0, 1e18, 1e36], dtype=dtype)
    centers = torch.cat([-sizes, sizes])
    neighbors = torch.nextafter(centers, torch.full_like(centers, torch.inf))
    wide = torch.nextafter(neighbors, torch.full_like(centers, torch.inf))
    for box in (Interval(centers, neighbors), Interval(centers, wide), Interval(-sizes, sizes)):
        for pieces in (rule.value, rule.slope):
            bounds = pieces.over(site, box)
            Interval(bounds.lower, bounds.upper, nonnegative=bounds.nonnegative)  # checks itself


def test_softplus_includes_both_sides_of_its_threshold():
    op = torch.ops.aten.softplus.default
    site = first_site(op, torch.nn.functional.softplus)
    bounds = RULES[op].value.over(site, Interval(torch.tensor([20.0]).double(), torch.tensor([20.0 + 1e-12]).double()))
    at_threshold = torch.nn.functional.softplus(torch.tensor([20.0]).double())
    assert bounds.contains(at_threshold)
    assert bounds.contains(torch.tensor([20.0]).double())


def test_gradient_of_relu_at_points_is_that_of_autograd_at_zero_as_well():
    x = torch.tensor([-1.0, -1e-300, -0.0, 0.0, 1e-300, 2.0], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(torch.relu(x).sum(), x)
    op = torch.ops.aten.relu.default
    point = Interval.point(x.detach())
    (gradient,) = RULES[op].backward(first_site(op, torch.relu), Interval.point(torch.ones(6).double()), [point], point)
    assert gradient.is_point
    assert torch.equal(gradient.lower, expected)


@pytest.mark.parametrize("function", [torch.log, torch.sqrt, torch.rsqrt, torch.reciprocal])
def test_values_outside_the_domain_are_refused(function):
    op = getattr(torch.ops.aten, function.__name__).default
    setting = Setting("domain", op, lambda m, x: function(x), (Box(),))
    program = build(setting, RULES)
    graph = program.graph
    box = Interval(-torch.ones(3).double(), torch.ones(3).double())
    shift = Interval.point(torch.zeros(1).double())
    inputs = {**dict.fromkeys(graph.leaves, box), **dict.fromkeys(graph.parameters, shift)}
    with pytest.raises(UncertifiableError, match=f"`aten.{function.__name__}`.*Add a positive constant"):
        propagate_forward(program, inputs)


@pytest.mark.parametrize(
    "function",
    [
        torch.square,
        torch.ops.aten.square,
        lambda x: x.square(),
        lambda x, power=2: x**power,
        lambda x, **settings: x.square(),
        lambda site, x: x.square(),
        functools.partial(lambda power, site, x: x**power, 2),
    ],
    ids=["written in C", "an op", "of x", "with a default", "with keywords", "of site and x", "partial"],
)
def test_functions_may_leave_out_the_site(function):
    assert evaluate(function, None, torch.tensor(3.0)).item() == 9.0


def test_turns_and_sign_may_depend_on_the_site():
    box = Interval(torch.tensor([-1.0]), torch.tensor([2.0]))
    fixed = PiecewiseMonotoneFunction(torch.square, [(0.0, 0.0)], nonnegative=True)
    by_site = PiecewiseMonotoneFunction(lambda site, x: x.square(), lambda site: [(0.0, 0.0)], lambda site: True)
    for parabola in (fixed, by_site):
        bounds = parabola.over(None, box)
        assert (bounds.lower.item(), bounds.upper.item(), bounds.nonnegative) == (0.0, 4.0, True)


@dataclass
class Shifted:
    """A function that has no hash."""

    by: float

    def __call__(self, x):
        return x + self.by


FUNCTIONS = {
    "in C": (torch.neg, -2.0),
    "of x": (lambda x: x + 1, 3.0),
    "of the site": (lambda site, x: x * site, 14.0),
    "of the site, with a default": (lambda site, x=None: x * site, 14.0),
    "without a hash": (Shifted(5.0), 7.0),
}


@pytest.mark.parametrize(("function", "expected"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_of_x_and_of_the_site_are_told_apart(function, expected):
    assert evaluate(function, 7.0, torch.tensor(2.0)).item() == expected
