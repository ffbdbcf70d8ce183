"""Looking at large inputs first finds what looking at all finds."""

import dataclasses

import pytest
import torch

from agt_lightning.aggregation import threshold_top_n as shared_inputs
from agt_lightning.aggregation import top_n_sum
from agt_lightning.aggregation.threshold_top_n import shared_input_sums

ROUNDING = 1e-13
"""Relative, of sums of at most fifty products in another order."""


NOT_EVEN = torch.full((12,), torch.inf, dtype=torch.float64)
"""Limits that settle nothing."""


def problem(kind, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = normal(800, 20)
    rise, fall = normal(6, 800).abs(), normal(6, 800).abs()
    if kind == "dead units":
        rise, fall = (slopes * (normal(6, 800) > 1.5) for slopes in (rise, fall))
    if kind == "one class each":
        classes = torch.arange(800) % 6
        rise = (torch.arange(6)[:, None] == classes).double()
        fall = 1 - rise
    if kind == "sparse inputs":
        inputs = inputs * (normal(800, 20) > 2)
    if kind == "nonnegative inputs":
        inputs = inputs.relu()
    if kind == "equal":
        inputs, rise = inputs.sign(), torch.ones(6, 800, dtype=torch.float64)
    if kind == "some negative slopes":
        rise, fall = normal(6, 800), -fall
    if kind == "opposed":  # the larger the input, the smaller the slope: all gains are about one
        inputs = torch.linspace(1, 2, 800, dtype=torch.float64)[:, None] * (1 + 0.01 * inputs.abs())
        rise, fall = 1 / inputs[:, :6].T, 1 / inputs[:, 6:12].T
    if kind == "nothing":
        rise, fall = torch.zeros_like(rise), torch.zeros_like(fall)
    return rise, fall, inputs


KINDS = (
    "any",
    "dead units",
    "one class each",
    "sparse inputs",
    "nonnegative inputs",
    "equal",
    "some negative slopes",
    "opposed",
    "nothing",
)


def expected(rise, fall, inputs, n):
    z = inputs.T[None]
    sums = []
    for a, b in ((rise, fall), (fall, rise)):
        gains = a[:, None] * z.clamp(min=0) + b[:, None] * (-z).clamp(min=0)
        sums.append(top_n_sum(gains.flatten(0, 1), n).reshape(6, -1))
    return sums


def check(rise, fall, inputs, n):
    found = shared_input_sums(rise, fall, inputs, n)
    assert found is not None
    for sums, right in zip(found, expected(rise, fall, inputs, n), strict=True):
        assert bool(((sums - right).abs() <= ROUNDING * right).all()), "sums differ from those over all samples"


@pytest.fixture
def always(monkeypatch):
    """Whatever the probes say."""
    monkeypatch.setattr(shared_inputs, "_ENOUGH", 0.0)
    monkeypatch.setattr(shared_inputs, "_SAVED", 0)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("n", [1, 7, 50, 300, 800, 900])
@pytest.mark.parametrize("kind", KINDS)
def test_sums_equal_those_over_all_samples(kind, n):
    check(*problem(kind), n)


def test_few_samples_are_enough_for_even_slopes(monkeypatch):
    """No other sample is looked at, which is the point of it."""
    rise, fall, inputs = problem("any")
    monkeypatch.setattr(shared_inputs, "top_n_sum", lambda *_: pytest.fail("all samples were looked at"))
    shared_input_sums(5 + rise, 5 + fall, inputs, 5)


@pytest.mark.usefixtures("always")
def test_a_limit_that_is_too_low_is_found(monkeypatch):
    """Planted fault: where few samples have large gains, the first ones are taken to be all there is."""
    monkeypatch.setattr(shared_inputs, "top_n_sum", lambda gains, n: gains[:, :n].clamp(min=0).sum(dim=1))
    with pytest.raises(AssertionError, match="sums differ"):
        check(*problem("dead units"), 7)


@pytest.mark.usefixtures("always")
def test_nan_is_not_lost():
    rise, fall, inputs = problem("any")
    rise[2, 5] = torch.nan
    up, down = shared_input_sums(rise, fall, inputs, 7)
    assert bool((up[2].isnan() | down[2].isnan()).all())


def test_it_is_left_to_others_where_it_does_not_pay():
    rise, fall, inputs = problem("any")
    assert shared_input_sums(5 + rise, 5 + fall, inputs, 100) is not None
    assert shared_input_sums(5 + rise, 5 + fall, inputs, 101) is None, "many poisoned samples"
    assert shared_input_sums(5 + rise[:3], 5 + fall[:3], inputs, 5) is None, "few outputs"
    assert shared_input_sums(*problem("opposed"), 50) is None, "neither large inputs nor steep slopes settle much"


def test_steep_slopes_settle_what_large_inputs_do_not(monkeypatch):
    """Where most slopes are zero, few samples of large inputs have gains at all."""
    assert shared_input_sums(*problem("dead units"), 50) is not None
    right = shared_inputs._Steep.of
    monkeypatch.setattr(shared_inputs._Steep, "of", lambda *a: dataclasses.replace(right(*a), moderate=NOT_EVEN))
    assert shared_input_sums(*problem("dead units"), 50) is None


@pytest.mark.usefixtures("always")
def test_a_limit_on_moderate_slopes_that_is_too_low_is_found(monkeypatch):
    """Planted fault: what is not steep is taken for flat."""
    right = shared_inputs._Steep.of

    def flat(*arguments):
        steep = right(*arguments)
        return dataclasses.replace(steep, moderate=steep.moderate * 0)

    monkeypatch.setattr(shared_inputs._Steep, "of", flat)
    with pytest.raises(AssertionError, match="sums differ"):
        check(*problem("opposed"), 7)
