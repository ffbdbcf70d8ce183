"""Insertions and deletions against every set of samples that can go, and every number that can come."""

import pytest
import torch

from agt_lightning.aggregation import BatchEdits, SampleSet, ValueClipping, edited_descent
from agt_lightning.aggregation import edited_descent as edited_descent_function
from agt_lightning.gradients import Elementwise
from agt_lightning.interval import Interval
from tests.aggregation.oracles import AMPLE, KAPPA, TINY, clippings, dense, subsets

SIZE = 5
CLOSE = 1e-11
"""Sums of few numbers below ten: rounding, which is added outward, is far below."""
LAWS = {"mean": lambda size: 1 / size, "sum": lambda size: 0.7, "sum over root": lambda size: size**-0.5}
BOUNDS = [(None, n) for n in (0, 1, 2, 3, 4)] + [([1, 4], 3), ([2], 2), ([], 2), ([0, 1, 2], 7)]


def problem(seed, poisonable):
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, SIZE, 4, generator=generator, dtype=torch.float64)
    ends[0, 2] = ends[1, 2]
    gradient = Elementwise(Interval(ends.amin(dim=0), ends.amax(dim=0)))
    rows = None if poisonable is None else torch.tensor(poisonable, dtype=torch.int64)
    return gradient, SampleSet(torch.full((SIZE,), 1 / SIZE, dtype=torch.float64), rows)


def edits_of(law, n, samples):
    return BatchEdits(n, {change: law(SIZE + change) for change in BatchEdits.changes(n, samples.poisonable_count)})


def extremes(gradient, samples, n, clipping, law):
    """The least and the largest direction over all edits, element by element."""
    block = clipping(gradient.block(0, gradient.elements))
    rows = range(SIZE) if samples.poisonable is None else samples.poisonable.tolist()
    lowers, uppers = [], []
    for gone in subsets(list(rows), n):
        kept = [row for row in range(SIZE) if row not in gone]
        for came in range(n - len(gone) + 1):
            weight = law(len(kept) + came)
            lowers.append(weight * (block.lower[:, kept].sum(dim=1) - came * KAPPA))
            uppers.append(weight * (block.upper[:, kept].sum(dim=1) + came * KAPPA))
    return torch.stack(lowers).amin(dim=0), torch.stack(uppers).amax(dim=0)


def check(law, poisonable, n, kind=0, budget=AMPLE):
    for seed in range(3):
        gradient, samples = problem(seed, poisonable)
        clipping = clippings(gradient)[kind]
        got = edited_descent_function(gradient, samples, edits_of(law, n, samples), clipping, budget)
        lower, upper = extremes(gradient, samples, n, clipping, law)
        assert bool((got.lower.flatten() <= lower).all() & (got.upper.flatten() >= upper).all()), (
            "inside of brute force"
        )
        assert torch.allclose(got.lower.flatten(), lower, rtol=0, atol=CLOSE), "not brute force"
        assert torch.allclose(got.upper.flatten(), upper, rtol=0, atol=CLOSE), "not brute force"


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize(("poisonable", "n"), BOUNDS, ids=str)
def test_edited_descent_equals_brute_force(name, poisonable, n):
    for kind in (0, 1):
        check(LAWS[name], poisonable, n, kind)


def test_it_is_the_same_within_any_budget():
    check(LAWS["mean"], None, 2, budget=TINY)


@pytest.mark.parametrize("fault", ["one edit less", "nothing comes", "nothing goes", "the weight stays"])
def test_planted_mistakes_are_noticed(monkeypatch, fault):
    honest = edited_descent_function

    def faulty(gradient, samples, edits, *others):
        weights = dict(edits.weights)
        if fault == "one edit less":
            edits = BatchEdits(edits.n - 1, {change: weights[change] for change in range(1 - edits.n, edits.n)})
        if fault == "nothing comes":
            edits = BatchEdits(edits.n, {change: weight for change, weight in weights.items() if change == -edits.n})
        if fault == "nothing goes":
            edits = BatchEdits(edits.n, {edits.n: weights[edits.n]})
        if fault == "the weight stays":
            edits = BatchEdits(edits.n, dict.fromkeys(weights, weights[0]))
        return honest(gradient, samples, edits, *others)

    monkeypatch.setitem(globals(), "edited_descent_function", faulty)
    with pytest.raises(AssertionError, match="brute force"):
        check(LAWS["mean"], None, 3)


def test_sums_that_cancel_are_within_their_bounds_in_any_order():
    """Without edits, and from points: what is left of the sums is rounding alone."""
    generator = torch.Generator().manual_seed(1)
    half = 1e8 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    rows = torch.cat([half, -half, torch.full((1, 3), 1e-9, dtype=torch.float64)])
    weights = torch.full((101,), 1 / 101, dtype=torch.float64)
    clipping = ValueClipping(1e9)
    edits = BatchEdits(0, {0: 1 / 101})
    got = edited_descent(Elementwise(Interval.point(rows)), SampleSet(weights), edits, clipping, AMPLE)
    for seed in range(20):
        order = torch.randperm(101, generator=torch.Generator().manual_seed(seed))
        total = torch.zeros(3, dtype=torch.float64)
        for row in order:
            total = total + rows[row] / 101
        assert got.contains(total)
        assert got.contains(torch.full((3,), 1e-9 / 101, dtype=torch.float64))


def test_a_clean_batch_is_within_its_bounds():
    gradient, samples = problem(4, None)
    clipping = clippings(gradient)[0]
    block = clipping(Interval(dense(gradient).lower, dense(gradient).upper))
    for n in range(4):
        got = edited_descent(gradient, samples, edits_of(LAWS["mean"], n, samples), clipping, AMPLE)
        assert bool((got.lower.flatten() <= samples.weights @ block.lower).all())
        assert bool((got.upper.flatten() >= samples.weights @ block.upper).all())
