"""The threshold algorithm returns the sums over all samples."""

import dataclasses

import pytest
import torch

from agt_lightning.aggregation import threshold_top_n, top_n_sum
from agt_lightning.aggregation.threshold_top_n import shared_input_sums

ROUNDING = 1e-13
"""Relative, of sums of at most fifty products in another order."""


NOT_EVEN = torch.full((12,), torch.inf, dtype=torch.float64)
"""Limits with which no sum is final."""


def problem(kind, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = normal(800, 20)
    up_gains, down_gains = normal(6, 800).abs(), normal(6, 800).abs()
    if kind == "dead units":
        up_gains, down_gains = (slopes * (normal(6, 800) > 1.5) for slopes in (up_gains, down_gains))
    if kind == "one class each":
        classes = torch.arange(800) % 6
        up_gains = (torch.arange(6)[:, None] == classes).double()
        down_gains = 1 - up_gains
    if kind == "sparse inputs":
        inputs = inputs * (normal(800, 20) > 2)
    if kind == "nonnegative inputs":
        inputs = inputs.relu()
    if kind == "equal":
        inputs, up_gains = inputs.sign(), torch.ones(6, 800, dtype=torch.float64)
    if kind == "some negative slopes":
        up_gains, down_gains = normal(6, 800), -down_gains
    if kind == "opposed":  # the larger the input, the smaller the slope: all gains are about one
        inputs = torch.linspace(1, 2, 800, dtype=torch.float64)[:, None] * (1 + 0.01 * inputs.abs())
        up_gains, down_gains = 1 / inputs[:, :6].T, 1 / inputs[:, 6:12].T
    if kind == "nothing":
        up_gains, down_gains = torch.zeros_like(up_gains), torch.zeros_like(down_gains)
    return up_gains, down_gains, inputs


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


def expected(up_gains, down_gains, inputs, n):
    z = inputs.T[None]
    sums = []
    for a, b in ((up_gains, down_gains), (down_gains, up_gains)):
        gains = a[:, None] * z.clamp(min=0) + b[:, None] * (-z).clamp(min=0)
        sums.append(top_n_sum(gains.flatten(0, 1), n).reshape(6, -1))
    return sums


def check(up_gains, down_gains, inputs, n):
    found = shared_input_sums(up_gains, down_gains, inputs, n)
    assert found is not None
    for sums, right in zip(found, expected(up_gains, down_gains, inputs, n), strict=True):
        assert bool(((sums - right).abs() <= ROUNDING * right).all()), "sums differ from those over all samples"


@pytest.fixture
def always(monkeypatch):
    """Use the search even if the probes advise against it."""
    monkeypatch.setattr(threshold_top_n, "_MIN_FINAL_SHARE", 0.0)
    monkeypatch.setattr(threshold_top_n, "_MIN_SAVING", 0)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("n", [1, 7, 50, 300, 800, 900])
@pytest.mark.parametrize("kind", KINDS)
def test_sums_equal_those_over_all_samples(kind, n):
    check(*problem(kind), n)


def test_few_samples_are_enough_for_even_slopes(monkeypatch):
    """No gain of another sample is computed: that is what the search saves."""
    up_gains, down_gains, inputs = problem("any")
    monkeypatch.setattr(threshold_top_n, "top_n_sum", lambda *_: pytest.fail("the gains of all samples were computed"))
    shared_input_sums(5 + up_gains, 5 + down_gains, inputs, 5)


@pytest.mark.usefixtures("always")
def test_a_limit_that_is_too_low_is_found(monkeypatch):
    """Planted fault: where few samples have large gains, the first ones are taken for all."""
    monkeypatch.setattr(threshold_top_n, "top_n_sum", lambda gains, n: gains[:, :n].clamp(min=0).sum(dim=1))
    with pytest.raises(AssertionError, match="sums differ"):
        check(*problem("dead units"), 7)


@pytest.mark.usefixtures("always")
def test_nan_is_not_lost():
    up_gains, down_gains, inputs = problem("any")
    up_gains[2, 5] = torch.nan
    up, down = shared_input_sums(up_gains, down_gains, inputs, 7)
    assert bool((up[2].isnan() | down[2].isnan()).all())


def test_no_search_where_it_does_not_pay():
    up_gains, down_gains, inputs = problem("any")
    assert shared_input_sums(5 + up_gains, 5 + down_gains, inputs, 100) is not None
    assert shared_input_sums(5 + up_gains, 5 + down_gains, inputs, 101) is None, "many poisoned samples"
    assert shared_input_sums(5 + up_gains[:3], 5 + down_gains[:3], inputs, 5) is None, "few outputs"
    assert shared_input_sums(*problem("opposed"), 50) is None, "neither large inputs nor steep slopes decide many sums"


def test_steep_slopes_decide_sums_that_large_inputs_do_not(monkeypatch):
    """If most slopes are zero, few samples of large inputs have gains at all."""
    assert shared_input_sums(*problem("dead units"), 50) is not None
    right = threshold_top_n._SteepestSamples.of
    monkeypatch.setattr(
        threshold_top_n._SteepestSamples, "of", lambda *a: dataclasses.replace(right(*a), other_slopes_limit=NOT_EVEN)
    )
    assert shared_input_sums(*problem("dead units"), 50) is None


@pytest.mark.usefixtures("always")
def test_a_limit_on_moderate_slopes_that_is_too_low_is_found(monkeypatch):
    """Planted fault: slopes that are not among the steepest are taken for zero."""
    right = threshold_top_n._SteepestSamples.of

    def flat(*arguments):
        steepest = right(*arguments)
        return dataclasses.replace(steepest, other_slopes_limit=steepest.other_slopes_limit * 0)

    monkeypatch.setattr(threshold_top_n._SteepestSamples, "of", flat)
    with pytest.raises(AssertionError, match="sums differ"):
        check(*problem("opposed"), 7)
