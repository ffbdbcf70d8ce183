"""Sums over sources against all subsets of sources, for every path that sums of gains can take."""

import itertools
from dataclasses import replace

import pytest
import torch

from agt_lightning.aggregation import Choice, SampleSet, bounded_descent, top_n_sum, unbounded_descent
from agt_lightning.interval import Interval
from tests.aggregation.oracles import AMPLE, TINY, Case, cases, clippings, dense
from tests.faults import Fault, require_checks_pass

CLOSE = 1e-12
"""Weighted sums of five numbers of size ten: rounding is far below."""

IDS = (
    torch.tensor([7, -2, 7, 7, -2]),
    torch.tensor([3, 1, 2, 5, 4]),
    torch.tensor([0, 0, 0, 0, 0]),
    torch.tensor([9, 9, 4, 9, 1]),
)


def owned_cases():
    """Each case of the samples' oracles, with sources of equal and of different sizes."""
    for position, case in enumerate(cases()):
        yield replace(case, samples=replace(case.samples, sources=IDS[position % len(IDS)]))


def changed_sets(case: Case):
    """The poisonable samples of every set of at most n sources: all of them, and every part of one source."""
    sources = case.samples.sources
    members = {int(q): [i for i in case.poisonable if sources[i] == q] for q in sources.unique()}
    for count in range(min(case.n, len(members)) + 1):
        for chosen in itertools.combinations(members, count):
            every = [i for q in chosen for i in members[q]]
            for size in range(len(every) + 1):
                yield from itertools.combinations(every, size)


def check_bounded(descent, case, budget=AMPLE):
    clean, poisoned, weights = dense(case.clean), dense(case.poisoned), case.samples.weights
    sums = []
    for subset in changed_sets(case):
        lower, upper = clean.lower.clone(), clean.upper.clone()
        for sample in subset:
            row = case.poisonable.index(sample)
            lower[sample], upper[sample] = poisoned.lower[row], poisoned.upper[row]
        sums.append((weights @ lower, weights @ upper))
    require_extremes(descent(case.clean, case.poisoned, case.samples, case.n, budget), sums)


def check_unbounded(descent, case, clipping, budget=AMPLE):
    block = clipping(case.clean.block(0, case.clean.elements))
    weights, sums = case.samples.weights, []
    for subset in changed_sets(case):
        lower, upper = block.lower.T.clone(), block.upper.T.clone()
        lower[list(subset)], upper[list(subset)] = -clipping.kappa, clipping.kappa
        sums.append((weights @ lower, weights @ upper))
    require_extremes(descent(case.clean, case.samples, case.n, clipping, budget), sums)


def require_extremes(got: Interval, sums):
    lower = torch.stack([low for low, _ in sums]).amin(dim=0).reshape(got.shape)
    upper = torch.stack([high for _, high in sums]).amax(dim=0).reshape(got.shape)
    assert float((got.upper - upper).abs().max()) < CLOSE, "upper bound differs from brute force"
    assert float((got.lower - lower).abs().max()) < CLOSE, "lower bound differs from brute force"


def test_sums_over_sources_equal_brute_force(subtests):
    for case in owned_cases():
        for budget in (AMPLE, TINY):
            with subtests.test(case=str(case), budget=budget):
                check_bounded(bounded_descent, case, budget)
                for clipping in clippings(case.clean):
                    check_unbounded(unbounded_descent, case, clipping, budget)


def test_a_source_for_each_sample_is_the_sum_over_samples():
    for case in cases():
        alone = replace(case.samples, sources=torch.arange(5) * 11)
        got = bounded_descent(case.clean, case.poisoned, alone, case.n, AMPLE)
        expected = bounded_descent(case.clean, case.poisoned, case.samples, case.n, AMPLE)
        assert torch.allclose(got.upper, expected.upper, rtol=0, atol=CLOSE)
        assert torch.allclose(got.lower, expected.lower, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("n", range(5))
def test_the_sets_of_a_choice(n):
    generator = torch.Generator().manual_seed(n)
    values = torch.rand(5, generator=generator, dtype=torch.float64)
    for ids in IDS:
        samples = SampleSet(torch.ones(5, dtype=torch.float64), sources=ids)
        choice = Choice(n, samples.membership)
        owned = [[i for i in range(5) if ids[i] == q] for q in ids.unique()]
        sets = [
            sum(chosen, [])
            for count in range(min(n, len(owned)) + 1)
            for chosen in itertools.combinations(owned, count)
        ]
        assert float(choice.largest(values)) == pytest.approx(max(float(values[each].sum()) for each in sets))
        assert choice.samples == max(map(len, sets))


def test_nan_among_the_gains_of_a_source_is_seen():
    gains = torch.tensor([[1.0, torch.nan, 0.0]])
    membership = SampleSet(torch.ones(3), sources=torch.tensor([1, 2, 1])).membership
    assert bool(top_n_sum(gains, 1, membership).isnan())


def counted_by_samples(clean, poisoned, samples, n, budget):
    return bounded_descent(clean, poisoned, replace(samples, sources=None), n, budget)


def of_the_first_rows(clean, poisoned, samples, n, budget):
    """Sources of the first samples in place of those of the poisonable ones."""
    rows = samples.poisonable
    wrong = samples.sources if rows is None else samples.sources.index_copy(0, rows, samples.sources[: len(rows)])
    return bounded_descent(clean, poisoned, replace(samples, sources=wrong), n, budget)


def one_source_less(clean, poisoned, samples, n, budget):
    return bounded_descent(clean, poisoned, samples, max(0, n - 1), budget)


def substituted_by_samples(gradient, samples, n, clipping, budget):
    return unbounded_descent(gradient, replace(samples, sources=None), n, clipping, budget)


def all_bounded(descent=bounded_descent):
    for case in owned_cases():
        check_bounded(descent, case)


def all_unbounded(descent=unbounded_descent):
    for case in owned_cases():
        for clipping in clippings(case.clean):
            check_unbounded(descent, case, clipping)


FAULTS = [
    Fault("n counts samples", all_bounded, counted_by_samples),
    Fault("sources of other samples", all_bounded, of_the_first_rows),
    Fault("SEMax of n - 1 sources", all_bounded, one_source_less),
    Fault("n counts substituted samples", all_unbounded, substituted_by_samples),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_oracle_notices_a_broken_piece(fault):
    fault.require_noticed("differs from")


def test_without_faults_the_checks_pass():
    require_checks_pass(FAULTS)
