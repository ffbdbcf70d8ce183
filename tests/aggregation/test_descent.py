"""Theorems 3.4 and D.1 against all subsets of poisoned samples."""

import pytest
import torch

from agt_lightning.aggregation import SampleSet, bounded_descent, clipped_mean, descent, unbounded_descent
from agt_lightning.gradients import Elementwise, OuterProduct
from agt_lightning.interval import Interval
from tests.aggregation.oracles import (
    AMPLE,
    KAPPA,
    TINY,
    cases,
    check_bounded_descent,
    check_unbounded_descent,
    clippings,
    dense,
)

CASES = cases()
BUDGETS = {"ample": AMPLE, "one element": TINY, "a row or two": 1500}
EXACT = 1e-12
"""Weighted sums of five numbers of size ten: rounding is far below."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bounded_descent_equals_brute_force_for_every_budget(case, subtests):
    for name, budget in BUDGETS.items():
        with subtests.test(budget=name):
            check_bounded_descent(bounded_descent, case, budget)


@pytest.mark.parametrize("kind", [0, 1], ids=["value", "norm"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_unbounded_descent_equals_brute_force_for_every_budget(case, kind, subtests):
    for name in ("ample", "one element"):
        with subtests.test(budget=name):
            check_unbounded_descent(unbounded_descent, case, clippings(case.clean)[kind], BUDGETS[name])


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_no_poisoned_pass_leaves_the_clean_sum(case):
    clean = dense(case.clean)
    got = bounded_descent(case.clean, None, case.samples, 3, TINY)
    assert torch.allclose(got.lower.flatten(), case.samples.weights @ clean.lower, rtol=0, atol=EXACT)
    assert torch.allclose(got.upper.flatten(), case.samples.weights @ clean.upper, rtol=0, atol=EXACT)


def test_gradients_without_a_total_are_summed_by_blocks():
    generator = torch.Generator().manual_seed(2)
    ends = [torch.randn(2, 4, 1, size, generator=generator, dtype=torch.float64) for size in (3, 5)]
    gradient = OuterProduct(*[Interval(pair.amin(dim=0), pair.amax(dim=0)) for pair in ends])
    weights = torch.rand(4, generator=generator, dtype=torch.float64)
    assert gradient.total(weights) is None
    got, clean = bounded_descent(gradient, None, SampleSet(weights), 0, TINY), dense(gradient)
    assert torch.allclose(got.upper.flatten(), weights @ clean.upper, rtol=0, atol=EXACT)
    assert torch.allclose(got.lower.flatten(), weights @ clean.lower, rtol=0, atol=EXACT)


def test_more_poison_is_never_tighter():
    for case in CASES[::5]:
        widths = [bounded_descent(case.clean, case.poisoned, case.samples, n, AMPLE).width for n in range(6)]
        assert all(bool((wide >= narrow - EXACT).all()) for narrow, wide in zip(widths, widths[1:], strict=False))


@pytest.mark.parametrize("budget", [AMPLE, TINY], ids=["ample", "one element"])
@pytest.mark.parametrize("kind", ["value", "norm"])
def test_clipped_mean_is_what_torch_computes(kind, budget):
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(6, 1, 3, generator=generator, dtype=torch.float64)
    inputs = torch.randn(6, 1, 4, generator=generator, dtype=torch.float64)
    weight = OuterProduct(Interval.point(outputs), Interval.point(inputs))
    bias = Elementwise(Interval.point(outputs[:, 0]))
    weights = torch.rand(6, generator=generator, dtype=torch.float64)
    full = torch.cat([torch.einsum("bto,btk->bok", outputs, inputs).flatten(1), outputs[:, 0]], dim=1)
    if kind == "value":
        clipping = clippings(weight)[0]
        expected = weights @ full.clamp(-KAPPA, KAPPA)
    else:
        clipping = type(clippings(weight)[1]).of(KAPPA, [weight, bias])
        expected = weights @ torch.stack([row * min(1.0, KAPPA / float(row.norm())) for row in full])
    got = torch.cat([clipped_mean(part, weights, clipping, budget).flatten() for part in (weight, bias)])
    assert torch.allclose(got, expected, rtol=0, atol=EXACT)


def test_clipped_mean_agrees_with_torch_clip_grad_norm():
    layer = torch.nn.Linear(3, 2).double()
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(layer.weight)
    for sample in x:
        layer.zero_grad()
        layer(sample).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), KAPPA)
        expected += layer.weight.grad / 4
    slope = 2 * layer(x).detach()
    weight = OuterProduct(Interval.point(slope[:, None]), Interval.point(x[:, None]))
    clipping = type(clippings(weight)[1]).of(KAPPA, [weight, Elementwise(Interval.point(slope))])
    got = clipped_mean(weight, torch.full((4,), 0.25, dtype=torch.float64), clipping, AMPLE)
    # torch divides by the norm plus 1e-6, so that its clipped gradients are shorter by that much.
    assert torch.allclose(got, expected, rtol=0, atol=1e-6 * 4)


@pytest.mark.parametrize("positions", [None, torch.tensor([1, 3])], ids=["all", "some"])
def test_where_all_can_be_poisoned_no_gain_is_looked_at(monkeypatch, positions):
    generator = torch.Generator().manual_seed(3)
    ends = [0.5 + torch.rand(2, 4, 1, size, generator=generator, dtype=torch.float64) for size in (3, 5)]
    known = {"nonnegative": True}
    clean = OuterProduct(*[Interval.trusted(pair.amin(dim=0), pair.amax(dim=0), **known) for pair in ends])
    rows = slice(None) if positions is None else positions
    poisoned = OuterProduct(
        *[Interval.trusted(f.lower[rows] - 0.1, f.upper[rows] + 0.2, **known) for f in (clean.outputs, clean.inputs)]
    )
    samples = SampleSet(torch.rand(4, generator=generator, dtype=torch.float64), positions)
    count = len(samples.select(samples.weights))
    before = bounded_descent(clean, poisoned, samples, count - 1, AMPLE)
    monkeypatch.setattr(descent, "top_n_gains", lambda *_: pytest.fail("gains were looked at"))
    after = bounded_descent(clean, poisoned, samples, count, AMPLE)
    assert bool((after.upper >= before.upper).all())
    weights, reached, seen = samples.select(samples.weights), dense(poisoned), dense(clean)
    upper = samples.weights @ seen.upper + weights @ (reached.upper - samples.select(seen.upper.T).T)
    assert torch.allclose(after.upper.flatten(), upper, rtol=0, atol=EXACT)
