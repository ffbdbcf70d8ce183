"""Moment bounds contain every set of poisoned samples and are never narrower than the exact sums."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from agt_lightning.aggregation import SampleSet, bounded_descent, moment_descent, moment_terms, moments
from agt_lightning.aggregation.moment_terms import FactoredGains
from agt_lightning.aggregation.moments import MomentSums, exponents_for, factored_gains, threshold
from agt_lightning.gradients import Elementwise, OuterProduct, Stacked, Summed
from agt_lightning.interval import Interval
from tests.aggregation.moment_oracles import (
    check_contains_every_subset,
    check_never_narrower_than_exact,
    moment_cases,
    random_products,
)
from tests.aggregation.oracles import AMPLE, dense
from tests.faults import Fault

CASES = moment_cases()
EXACT = 1e-9
"""Where the bound is attained it is only as much wider as its outward rounding."""


def everything(descent=moment_descent):
    for case in CASES:
        check_contains_every_subset(descent, case)
    check_never_narrower_than_exact(descent)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bound_contains_every_set_of_poisoned_samples(case):
    assert factored_gains(case.clean, case.poisoned, case.samples) is not None
    check_contains_every_subset(moment_descent, case)


def test_bound_is_never_narrower_than_the_exact_one():
    check_never_narrower_than_exact(moment_descent)


@pytest.mark.parametrize("size", [8, 2**9])
def test_chunks_of_samples_add_up(size, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    samples = SampleSet(torch.rand(300, generator=generator, dtype=torch.float64))
    for clean, poisoned in random_products(300, generator):
        whole = moment_descent(clean, poisoned, samples, 20, AMPLE)
        with monkeypatch.context() as patched:
            patched.setattr(moment_terms, "_CACHED", size)
            parts = moment_descent(clean, poisoned, samples, 20, AMPLE)
        assert torch.allclose(whole.upper, parts.upper, rtol=EXACT)
        assert torch.allclose(whole.lower, parts.lower, rtol=EXACT)


def test_bound_is_close_for_normal_gains():
    generator = torch.Generator().manual_seed(4)
    outputs = torch.randn(10_000, 1, 3, generator=generator, dtype=torch.float64)
    inputs = Interval.point(torch.randn(10_000, 1, 4, generator=generator, dtype=torch.float64))
    clean, poisoned = (OuterProduct(Interval(outputs - r, outputs + r), inputs) for r in (0.0, 1.0))
    samples = SampleSet(torch.ones(10_000, dtype=torch.float64))
    for n in (3, 30, 300, 3000):
        exact, bound = (d(clean, poisoned, samples, n, AMPLE) for d in (bounded_descent, moment_descent))
        # Hölder at half-normal gains: (E g^p / f)^(1/p) over the mean of the top f, at most 1.25 for 4 <= p <= 16.
        assert float((bound.width / exact.width).max()) < 1.25


def test_few_samples_of_huge_gains_cost_little():
    generator = torch.Generator().manual_seed(5)
    inputs = Interval.point(torch.rand(2000, 1, 3, generator=generator, dtype=torch.float64) + 0.5)
    outputs = torch.zeros(2000, 1, 1, dtype=torch.float64)
    beta = torch.full_like(outputs, 0.1)
    beta[::200] = 100.0
    clean, poisoned = OuterProduct(Interval.point(outputs), inputs), OuterProduct(Interval(-beta, beta), inputs)
    samples = SampleSet(torch.ones(2000, dtype=torch.float64))
    exact, bound = (d(clean, poisoned, samples, 20, AMPLE) for d in (bounded_descent, moment_descent))
    assert float((bound.width / exact.width).max()) < 1.1


def test_equal_gains_are_summed_exactly():
    ones = torch.ones(50, 1, 2, dtype=torch.float64)
    clean, poisoned = (OuterProduct(Interval(-r * ones, r * ones), Interval.point(3 * ones)) for r in (1.0, 2.0))
    samples = SampleSet(torch.ones(50, dtype=torch.float64))
    for n in (1, 7, 50, 80):
        bound = moment_descent(clean, poisoned, samples, n, AMPLE)
        assert torch.allclose(bound.upper, torch.full((2, 2), 150.0 + 3 * min(n, 50), dtype=torch.float64), rtol=EXACT)


def test_without_poison_it_is_the_clean_sum():
    for case in CASES[::7]:
        got = moment_descent(case.clean, None, case.samples, 3, AMPLE)
        clean = dense(case.clean)
        assert torch.allclose(got.upper.flatten(), case.samples.weights @ clean.upper, rtol=EXACT)
        none = moment_descent(case.clean, case.poisoned, case.samples, 0, AMPLE)
        assert torch.equal(none.upper, got.upper)


def test_gradients_without_factors_are_summed_exactly():
    generator = torch.Generator().manual_seed(6)
    ends = torch.randn(4, 5, 2, 3, generator=generator, dtype=torch.float64).sort(dim=0).values
    inner, outer = Elementwise(Interval(ends[1], ends[2])), Elementwise(Interval(ends[0], ends[3]))
    samples = SampleSet(torch.rand(5, generator=generator, dtype=torch.float64))
    for clean, poisoned in ((inner, outer), (Summed([inner, inner]), Summed([outer, outer]))):
        exact, bound = (d(clean, poisoned, samples, 2, AMPLE) for d in (bounded_descent, moment_descent))
        assert torch.equal(exact.upper, bound.upper)
        assert torch.equal(exact.lower, bound.lower)


def test_poisonable_samples_out_of_order_in_stacks_are_no_tighter_than_exact_sums():
    case = next(case for case in CASES if str(case) == "stacked, labels, n=2, 6")
    shuffled = SampleSet(case.samples.weights, torch.tensor([5, 0, 3, 1, 4, 2]))
    exact, bound = (d(case.clean, case.poisoned, shuffled, 2, AMPLE) for d in (bounded_descent, moment_descent))
    assert (bound.upper >= exact.upper - EXACT).all()
    assert (bound.lower <= exact.lower + EXACT).all()


def test_float32_bounds_are_rounded_outward():
    generator = torch.Generator().manual_seed(7)
    outputs = torch.randn(40, 1, 3, generator=generator)
    inputs = Interval.point(torch.randn(40, 1, 4, generator=generator))
    clean, poisoned = (OuterProduct(Interval(outputs - r, outputs + r), inputs) for r in (0.0, 1.0))
    samples = SampleSet(torch.full((40,), 1 / 40, dtype=torch.float32))
    exact, bound = (d(clean, poisoned, samples, 4, AMPLE) for d in (bounded_descent, moment_descent))
    assert bound.upper.dtype == torch.float32
    assert bool((bound.upper > exact.upper).all())


def attained(units: int) -> tuple[OuterProduct, OuterProduct, torch.Tensor]:
    """Equal gains, whose top-n sum the moments attain; and these gains, exactly as floats."""
    generator = torch.Generator().manual_seed(8)
    gain = torch.rand(units, generator=generator, dtype=torch.float64)
    outputs = torch.zeros(7, 1, units, dtype=torch.float64)
    inputs = Interval.point(torch.full((7, 1, 1), 1.0, dtype=torch.float64))
    return OuterProduct(Interval.point(outputs), inputs), OuterProduct(Interval(outputs, outputs + gain), inputs), gain


def shortfalls(descent) -> list[Fraction]:
    clean, poisoned, gain = attained(400)
    bound = descent(clean, poisoned, SampleSet(torch.ones(7, dtype=torch.float64)), 3, AMPLE)
    return [3 * Fraction(g) - Fraction(b) for g, b in zip(gain.tolist(), bound.upper[:, 0].tolist(), strict=True)]


def test_rounding_is_outward():
    assert max(shortfalls(moment_descent)) <= 0


@pytest.mark.parametrize(
    ("rows", "taken", "expected"),
    [(100, 100, (1,)), (100, 200, (1,)), (100, 50, (4, 8)), (10_000, 100, (4, 8)), (60_000, 50, (8, 16))],
)
def test_exponents_grow_with_the_rarity_of_poison(rows, taken, expected):
    assert exponents_for(taken, rows, count=2) == expected
    assert exponents_for(taken, rows, count=1) == expected[:1]


def test_threshold_is_a_quantile():
    alphas = torch.arange(100.0)[torch.randperm(100, generator=torch.Generator().manual_seed(0))][:, None]
    assert threshold(alphas, 0.1).item() == 90.0
    assert threshold(alphas, 1.0).item() == 0.0
    assert threshold(alphas, 1e-6).item() == 99.0


def test_sums_of_two_sets_of_samples_are_those_of_the_union():
    case = next(case for case in CASES if str(case) == "positions, features, n=2, 6")
    whole, parts = case.clean.factors(), [slice(0, 2), slice(2, 6)]
    assert whole is not None

    def some(gradient, rows):
        return OuterProduct(gradient.outputs[rows], gradient.inputs[rows])

    stacked = [Stacked([some(gradient, rows) for rows in parts]) for gradient in (case.clean, case.poisoned)]
    one = moment_descent(case.clean, case.poisoned, case.samples, case.n, AMPLE)
    two = moment_descent(*stacked, case.samples, case.n, AMPLE)
    check_contains_every_subset(lambda *_: two, case)
    assert float(two.width.sum() / one.width.sum()) < 1.5  # thresholds and scales are each part's own


# --- planted faults --------------------------------------------------------------------------------------------------

terms, top_n = FactoredGains.terms, MomentSums.top_n


def without_clamp(clean, poisoned):
    return poisoned.upper - clean.upper, clean.lower - poisoned.lower


def terms_without_input_changes(self, ranges):
    return (tuple(replace(t, beta=t.beta * 0) for t in chunk) for chunk in terms(self, ranges))


def top_n_without_excess(self, n):
    return top_n(replace(self, excess=0 * self.excess), n)


def top_n_with_wrong_root(self, n):
    p = max(self.powers)
    return top_n(self, n) * n ** (1 / p - (1 - 1 / p))


def top_n_of_samples(self, n):
    return top_n(self, max(1, n // 3))


def first_sign_only(self, sums, ranges, join=torch.add):
    by_bound = sums.unflatten(0, (2, -1))
    return by_bound.chunk(2, dim=2)[0] if ranges.has_negative_inputs else by_bound


def bounds_not_exchanged(self, sums, ranges, join=torch.add):
    by_bound = sums.unflatten(0, (2, -1))
    return sum(by_bound.chunk(2, dim=2)) if ranges.has_negative_inputs else by_bound


def binomial_without_middle(total, outputs, inputs, p):
    (a, b), (x, y) = outputs, inputs
    total += (a**p).T @ x**p + (b**p).T @ y**p


FAULTS = [
    Fault("n^(1/p) instead of n^(1-1/p)", everything, top_n_with_wrong_root, (MomentSums, "top_n")),
    Fault("changes of inputs forgotten", everything, terms_without_input_changes, (FactoredGains, "terms")),
    Fault("excess forgotten", everything, top_n_without_excess, (MomentSums, "top_n")),
    Fault("negative inputs forgotten", everything, first_sign_only, (FactoredGains, "joined_signs")),
    Fault("negative inputs at the same bound", everything, bounds_not_exchanged, (FactoredGains, "joined_signs")),
    Fault("weights forgotten", everything, lambda outputs, weights: outputs, (moment_terms, "_weighted")),
    Fault("positions forgotten", everything, top_n_of_samples, (MomentSums, "top_n")),
    Fault("middle of the binomial forgotten", everything, binomial_without_middle, (moments, "_add_binomial")),
    Fault("negative gains in odd powers", everything, without_clamp, (moment_terms, "_outward_changes")),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_oracles_notice_a_broken_moment(fault):
    fault.require_noticed("differs from")


def test_rounding_test_notices_rounding_to_nearest(monkeypatch):
    for name, value in (("_ROUNDINGS", -(10**6)), ("_LAST_ROUNDINGS", 1.0)):
        monkeypatch.setattr(moments, name, value)
    assert max(shortfalls(moment_descent)) > 0
