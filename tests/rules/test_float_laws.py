"""Every rule states the roundings of its calls: what torch computes lies inside, and no statement is idle."""

from collections import defaultdict

import pytest
import torch
from torch.nn import functional as F

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.interval import Interval
from agt_lightning.rounding import unit_roundoff
from agt_lightning.rules.roundings import UNSTATED, Exact
from agt_lightning.rules.shape import CastRoundings
from tests.floats.kernels import KERNELS, shares
from tests.rules.float_laws import (
    build,
    execute,
    in_double,
    require_run_inside,
    rounded,
    runs_stay_inside,
    widened_bounds,
)
from tests.rules.laws import Box, Domain, Setting, Values
from tests.rules.settings import SETTINGS

aten = torch.ops.aten
SINGLE, DOUBLE = torch.float32, torch.float64
QUICK = [(SINGLE, 1e-6)]
SLOW = [(dtype, scale) for dtype in (SINGLE, DOUBLE) for scale in (0.0, 1e-6, 1.0)]


@pytest.mark.thinned(8)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_runs_stay_inside(setting, subtests):
    for dtype, scale in QUICK:
        with subtests.test(dtype=dtype, scale=scale):
            runs_stay_inside(setting, dtype, scale)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_runs_stay_inside_at_all_widths(setting, subtests):
    for dtype, scale in SLOW:
        with subtests.test(dtype=dtype, scale=scale):
            runs_stay_inside(setting, dtype, scale)


def statements(settings):
    """Return the settings of each way to state roundings, other than exact ones."""
    kinds = defaultdict(list)
    for setting in settings:
        program = build(setting, SINGLE, rounded())
        rules = {**program.shared, **program.rules}
        for name, site in program.sites.items():
            if site.call.op is setting.op:
                kinds[type(rules[name].roundings(site))].append(setting)
    return {kind: found for kind, found in kinds.items() if kind is not Exact}


def is_left(settings, table):
    """Return whether a run leaves the bounds of one of these settings."""
    for setting in settings:
        try:
            runs_stay_inside(setting, SINGLE, 0.0, table)
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("step", [25, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.thinned(1)
def test_no_statement_is_missing_or_idle(step):
    """Planted fault: only the bounds' own rounding is covered. Each way to state roundings is then found too small.

    Settings cast to wider types only; `test_a_cast_rounds` casts to a narrower one.
    """
    found, table = statements(SETTINGS[::step]), rounded(floats="real")
    assert len(found) > 3
    assert type(UNSTATED) not in found
    found.pop(CastRoundings, None)
    idle = [kind.__name__ for kind, settings in found.items() if not is_left(settings, table)]
    assert len(idle) <= (0 if step == 1 else len(found) // 2), idle


# --- sums ------------------------------------------------------------------------------------------------------------


def one_by_one(terms):
    """Return one and many numbers that vanish beside it, and their sum in this order."""
    weight = torch.full((1, terms), 0.99 * unit_roundoff(SINGLE))
    weight[0, 0] = 1.0
    total = torch.zeros(())
    for term in weight[0]:
        total = total + term
    return weight, total


def bounds_of_sum(weight):
    """Return bounds on the sum by the rule of a linear layer."""
    terms = weight.shape[1]
    setting = Setting(
        "sum", aten.linear.default, lambda m, x: F.linear(x, m.weight), (Box((terms,)),), {"weight": Box((1, terms))}
    )
    program = build(setting, SINGLE, rounded())
    ones = Interval.point(torch.ones(3, terms))
    seed = Interval.point(torch.ones(3, 1))
    return widened_bounds(program, in_double(Domain((ones,), {"weight": Interval.point(weight)}, seed))).output


def test_a_sum_in_the_worst_order_stays_inside():
    weight, total = one_by_one(64)
    assert bounds_of_sum(weight).contains(total.double().expand(3, 1))


def test_half_of_the_rounding_of_a_sum_is_too_little(monkeypatch):
    """Planted fault."""
    weight, total = one_by_one(64)
    stated = Arithmetic.run_relative
    monkeypatch.setattr(Arithmetic, "run_relative", lambda self, roundings: stated(self, roundings) / 2)
    assert not bounds_of_sum(weight).contains(total.double().expand(3, 1))


# --- kernels of functions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "count"), [(SINGLE, 3000), (DOUBLE, 40)], ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_kernels_are_as_right_as_stated(kernel, dtype, count):
    found = shares(kernel, dtype, count)
    assert found.value <= 1
    assert found.slope <= 1


# --- particular places -----------------------------------------------------------------------------------------------


def contained(setting, x, dtype=SINGLE, floats="run", grad=1.0):
    """Raise unless a run at a point stays inside."""
    program = build(setting, dtype, rounded(floats=floats))
    leaves = tuple(Interval.point(leaf) for leaf in x)
    seed = torch.full(program.graph.shapes[program.graph.output], grad, dtype=dtype)
    domain = Domain(leaves, {}, Interval.point(seed))
    bounds = widened_bounds(program, in_double(domain))
    require_run_inside(setting, bounds, execute(setting, domain, dtype, lambda value: value.lower))
    return bounds


@pytest.mark.parametrize("limits", [(0.0, 6.0), (-0.5, 0.0), (0.0, None), (None, 0.0), (0.1, 1.0), (0.0, 0.0)], ids=str)
def test_clamp_at_a_limit_has_both_derivatives(limits):
    low, high = limits
    at = next(limit for limit in limits if limit is not None)
    setting = Setting("at its limit", aten.clamp.default, lambda m, x: x.clamp(low, high), (Box(),))
    bounds = contained(setting, [torch.full((3,), at)])
    slope = bounds.gradients["shift0"]
    assert bool((slope.lower <= 0).all())
    assert bool((slope.upper >= 1).all())


@pytest.mark.parametrize("number", [0.1, -0.1, 1e-50], ids=str)
def test_a_frame_of_a_number_that_the_run_does_not_hold(number):
    setting = Setting("frame", aten.pad.default, lambda m, x: F.pad(x, (1, 1), value=number), (Box((1,)),))
    bounds = contained(setting, [torch.zeros(3, 1)])
    assert bool((bounds.output.lower[:, 0] < number).all())
    assert bool((bounds.output.width[:, 1] == 0).all())


@pytest.mark.parametrize(
    ("op", "function", "x", "grad"),
    [
        (aten.exp.default, lambda m, x: x.exp(), -103.0, 1e35),
        (aten.softplus.default, lambda m, x: F.softplus(x, beta=1e-30), -1.03e32, 1.0),
        (
            aten.smooth_l1_loss.default,
            lambda m, x: F.smooth_l1_loss(x, 0 * x, reduction="none", beta=1e-22),
            9e-23,
            1.0,
        ),
    ],
    ids=["exp", "softplus", "smooth_l1_loss"],
)
def test_what_underflows_before_it_is_multiplied_by_a_large_number_stays_inside(op, function, x, grad):
    setting = Setting("underflow", op, function, (Box((401,)),))
    contained(setting, [torch.linspace(0, x, 401).expand(3, 401)], grad=grad)


def test_a_frame_of_a_number_that_the_run_holds_is_exact():
    setting = Setting("frame", aten.pad.default, lambda m, x: F.pad(x, (1, 1), value=0.5), (Box((1,)),))
    assert bool((contained(setting, [torch.zeros(3, 1)]).output.width == 0).all())


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
def test_upsampling_reads_the_elements_that_the_type_of_the_run_reads(dtype):
    """Of two elements, the 42nd of 82 copies is the first one or the second one, by the rounding of 2 / 82."""
    setting = Setting("82", aten.upsample_nearest1d.vec, lambda m, x: F.interpolate(x, size=82), (Box((1, 2)),))
    contained(setting, [torch.tensor([[[1.0, 2.0]]], dtype=dtype).repeat(3, 1, 1)], dtype)


def test_elu_in_place_computes_its_slope_from_the_result():
    setting = Setting("in place", aten.elu.default, lambda m, x: F.elu(x + 0.0, 100.0, inplace=True), (Box((500,)),))
    contained(setting, [-torch.linspace(0.1, 16.0, 1500).reshape(3, 500)])


def test_smoothed_targets_that_cancel():
    """``(1 - s) y + s / K`` of a negative y is right only up to the rounding of both parts."""
    smoothing = 0.3

    def loss(m, z, y):
        return F.cross_entropy(z, y, label_smoothing=smoothing, reduction="none")

    setting = Setting("cancelled", aten.cross_entropy_loss.default, loss, (Box((4,)), Box((4,), differentiable=False)))
    logits = torch.tensor([[0.0, 1.0, 2.0, 80.0]]).expand(3, 4).contiguous()
    target = torch.full((3, 4), -smoothing / 4 / (1 - smoothing))
    contained(setting, [logits, target])


def test_a_cast_rounds():
    setting = Setting("narrower", aten.to.dtype, lambda m, x: x.float().double(), (Box(),))
    tenth = torch.full((3,), 0.1, dtype=DOUBLE)
    contained(setting, [tenth], DOUBLE)
    with pytest.raises(AssertionError, match="leaves its bounds"):
        contained(setting, [tenth], DOUBLE, floats="real")


def test_gradients_of_single_precision_are_rounded_though_the_result_is_of_double():
    setting = Setting("mixed", aten.mul.Tensor, lambda m, x: x * torch.full((2,), 1 / 3, dtype=DOUBLE), (Box((2,)),))
    program = build(setting, SINGLE, rounded())
    (name,) = (call.name for call in program.graph.calls if call.op is aten.mul.Tensor)
    assert program.sites[name].call.dtype == DOUBLE
    assert program.rules[name].arithmetic(program.sites[name]).run == SINGLE


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [-1e4, -1e9, float(torch.finfo(SINGLE).min)], ids=str)
def test_a_softmax_of_masked_scores_stays_inside_narrow_bounds(far):
    """An exponential that vanishes adds no error, however far its score is from the others."""
    mask = torch.tensor([0.0, far, 0.0, far])
    setting = Setting("masked", aten.softmax.int, lambda m, x: (x + mask).softmax(-1), (Box((4,)),))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    bounds = contained(setting, [x])
    assert float(bounds.output.width.max()) < 1e-3
    slope = bounds.gradients["shift0"]
    assert float((slope.upper - slope.lower).max()) < 1e-2


def test_a_sum_at_the_end_of_its_range_is_not_infinite():
    """What lies less than half a unit beyond the largest number is rounded to it, what lies beyond is not."""
    single, least = Arithmetic(SINGLE, DOUBLE), torch.finfo(SINGLE).min
    inside = Interval.point(torch.tensor([least - 100.0], dtype=DOUBLE))
    assert (torch.tensor(least) - 100.0).item() == least
    assert single.overflow(single.in_range(inside, single.outward(inside))) == 0.0
    beyond = Interval.point(torch.tensor([least * (1 + 2.0**-24)], dtype=DOUBLE))
    assert single.overflow(single.in_range(beyond, single.outward(beyond))) > 0.0


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [1e4, 3e4, 1e5], ids=str)
def test_probabilities_from_a_rounded_logarithm_of_their_sum_stay_inside(score):
    """A kernel's backward pass takes ``exp(s - log Σ exp s')``: two halves, or more, or less, by the last bit of s."""
    setting = Setting(
        "large scores",
        aten.scaled_dot_product_attention.default,
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v),
        (Box((1, 1)), Box((2, 1)), Box((2, 1))),
    )
    query, key = torch.full((3, 1, 1), score), torch.ones(3, 2, 1)
    value = torch.tensor([1.0, -1.0]).reshape(1, 2, 1).repeat(3, 1, 1)
    bounds = contained(setting, [query, key, value])
    scores = query @ key.mT
    probabilities = (scores - scores.logsumexp(dim=-1, keepdim=True)).exp()
    assert float((probabilities.sum(dim=-1) - 1).abs().max()) > 1e-4
    towards_keys = (probabilities * value.mT).mT * query  # with G = 1, G Vᵀ = Vᵀ, and its mean is zero
    gradients = {"shift1": towards_keys.double()[:, None], "shift2": probabilities.mT.double()[:, None]}
    require_run_inside(setting, bounds, Values(torch.zeros(3, 1, 1).double(), gradients))
