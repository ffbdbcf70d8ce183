import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agt_lightning.arithmetic import logsumexp_of_others, softmax, softplus, surprisal
from agt_lightning.interval import Interval
from agt_lightning.rounding import unit_roundoff

ROUNDINGS = 128
"""Roundings of a logsumexp of fewer than 6 terms and a sigmoid; the argument's own rounding is scaled by its size."""


def require_close(got, expected, size):
    """Equal up to rounding, relative to the larger of ``size`` and one."""
    assert bool(((got.double() - expected.double()).abs() <= ROUNDINGS * unit_roundoff(got.dtype) * (1 + size)).all())


@st.composite
def logits(draw):
    samples, classes = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    scale = draw(st.sampled_from([0.1, 1.0, 30.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    ends = scale * torch.randn(2, samples, classes, generator=generator, dtype=torch.float64)
    return Interval(ends.amin(dim=0), ends.amax(dim=0))


def corners(box):
    classes = box.shape[1]
    for picks in itertools.product((False, True), repeat=classes):
        yield torch.where(torch.tensor(picks), box.upper, box.lower)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(logits(), st.sampled_from([torch.float64, torch.float32]))
def test_softmax_bounds_are_the_extremes_over_all_corners(box, dtype):
    box = Interval(box.lower.to(dtype), box.upper.to(dtype))
    values = torch.stack([corner.double().softmax(dim=1) for corner in corners(box)])
    bounds = softmax(box)
    # A rounding of the logits moves a probability by at most as much.
    require_close(bounds.lower, values.amin(dim=0), box.magnitude.max().item())
    require_close(bounds.upper, values.amax(dim=0), box.magnitude.max().item())
    assert bounds.nonnegative
    assert bool((bounds.lower >= 0).all())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(logits(), st.sampled_from([torch.float64, torch.float32]))
def test_surprisal_bounds_are_the_extremes_over_all_corners(box, dtype):
    box = Interval(box.lower.to(dtype), box.upper.to(dtype))
    values = torch.stack([-corner.double().log_softmax(dim=1) for corner in corners(box)])
    bounds = surprisal(box)
    require_close(bounds.lower, values.amin(dim=0), box.magnitude.max().item())
    require_close(bounds.upper, values.amax(dim=0), box.magnitude.max().item())
    assert bounds.nonnegative


@pytest.mark.parametrize("function", [softmax, surprisal])
def test_point_logits_give_points(function):
    box = Interval.point(torch.randn(2, 3, generator=torch.Generator().manual_seed(0)))
    unmarked = Interval(box.lower, box.lower.clone())
    assert function(box).is_point
    require_close(function(unmarked).lower, function(box).lower, 1.0)
    require_close(function(unmarked).upper, function(box).lower, 1.0)


@pytest.mark.parametrize("function", [softmax, surprisal])
def test_pixels_are_separate(function):
    box = Interval(torch.zeros(2, 3, 4), torch.ones(2, 3, 4))
    bounds = function(box)
    single = function(Interval(box.lower[:, :, 0], box.upper[:, :, 0]))
    assert torch.equal(bounds.upper[:, :, 0], single.upper)
    assert bounds.shape == (2, 3, 4)


def test_softmax_of_huge_logits_is_a_step():
    box = Interval(*torch.tensor([[[1e300, -1e300]]] * 2, dtype=torch.float64))
    bounds = softmax(box)
    assert torch.equal(bounds.lower, torch.tensor([[1.0, 0.0]]).double())
    assert bool((bounds.upper - bounds.lower <= torch.finfo(torch.float64).tiny).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("distance", [40.0, 80.0, 300.0, 360.0, 700.0, 720.0, 800.0, 3000.0])
def test_bounds_of_logits_that_are_far_apart(distance, classes, dtype):
    """Shares beside the largest logit vanish in their type, and own logits reach far below it."""
    away = torch.arange(classes, dtype=dtype)[None]
    first, second = (away == 0).to(dtype), (away == 1).to(dtype)
    for center in (0 * away, -distance * away, distance * second):
        box = Interval(center - distance * first, center + distance * first)
        bounds = softmax(box)
        for k in range(classes):
            others = [index for index in range(classes) if index != k]
            for got, own, beside in (
                (bounds.lower, box.lower, box.upper),
                (bounds.upper, box.upper, box.lower),
            ):
                against = own[:, k].double() - beside[:, others].double().logsumexp(dim=1)
                expected = torch.sigmoid(against) if others else torch.ones(1).double()
                close = (got[:, k].double() - expected).abs() <= 16 * distance * unit_roundoff(dtype) * expected
                vanished = (expected < 4 * torch.finfo(dtype).tiny) & (got[:, k] < 8 * torch.finfo(dtype).tiny)
                assert bool((close | vanished).all())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(logits())
def test_logsumexp_of_others_leaves_one_out(box):
    values = box.lower
    others = logsumexp_of_others(values)
    for k in range(values.shape[1]):
        rest = torch.cat([values[:, :k], values[:, k + 1 :]], dim=1)
        if rest.shape[1] == 0:
            assert bool((others[:, k] == -torch.inf).all())
        else:
            require_close(others[:, k], rest.logsumexp(dim=1), values.abs().max().item())


def test_logsumexp_of_others_does_not_cancel():
    # By subtraction, log(exp(800) + 1 - exp(800)) would be lost.
    assert logsumexp_of_others(torch.tensor([[800.0, 0.0, 0.0]]).double())[0, 0].item() == pytest.approx(
        0.6931471805599453
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_softplus_is_the_formula_at_every_size(dtype):
    values = torch.tensor([-800.0, -30.0, -1.0, 0.0, 1.0, 19.0, 21.0, 40.0, 800.0], dtype=dtype)
    exact = torch.log1p(torch.exp(-values.double().abs())) + values.double().clamp(min=0)
    error = (softplus(values).double() - exact).abs()
    assert bool((error <= ROUNDINGS * unit_roundoff(dtype) * exact).all())
