import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.baselines.dpa import with_bias
from recipes.baselines.smoothing import LabelNoise, LeastSquares, certified_flips, log_thresholds

ROUNDING = 1e-9  # sums of some hundred probabilities in float64


def problem(seed, samples=5, classes=3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    centers = 3 * torch.randn(classes, 2, generator=generator, dtype=torch.float64)
    features = centers[labels] + torch.randn(samples, 2, generator=generator, dtype=torch.float64)
    x = centers + 0.3 * torch.randn(classes, 2, generator=generator, dtype=torch.float64)
    return LeastSquares(with_bias(features), labels, classes, ridge=0.1), with_bias(x)


def distribution(base, x, labels, noise):
    """P(class is predicted) under noise on ``labels``, (t, K), by going through all noisy labels."""
    weights, classes = base.weights(x), base.classes
    result = torch.zeros(len(x), classes, dtype=torch.float64)
    for noisy in itertools.product(range(classes), repeat=len(labels)):
        kept = sum(a == b for a, b in zip(noisy, labels.tolist(), strict=True))
        probability = (1 - noise.flip) ** kept * noise.other ** (len(labels) - kept)
        scores = weights @ torch.nn.functional.one_hot(torch.tensor(noisy), classes).double()
        result[range(len(x)), scores.argmax(dim=1)] += probability
    return result


def flipped(labels, classes, n):
    """All labels that differ from these in at most n places."""
    for places in itertools.combinations(range(len(labels)), n):
        for values in itertools.product(range(classes), repeat=n):
            changed = labels.clone()
            changed[list(places)] = torch.tensor(values, dtype=torch.long)
            yield changed


@given(st.integers(0, 10_000), st.sampled_from([0.02, 0.1, 0.3, 0.5]))
@settings(deadline=None, max_examples=15)
def test_chernoff_bounds_the_probability_of_another_prediction(seed, flip):
    base, x = problem(seed)
    noise = LabelNoise(flip, 3)
    winner, bounds = base.smoothed(x, [noise])
    others = 1 - distribution(base, x, base.labels, noise).gather(1, winner[:, None]).squeeze(1)
    assert bool((others <= bounds[0].exp() + ROUNDING).all())


@given(st.integers(0, 10_000), st.sampled_from([0.02, 0.1, 0.3]))
@settings(deadline=None, max_examples=6)
def test_no_flips_within_the_certificate_change_the_smoothed_prediction(seed, flip):
    base, x = problem(seed, samples=5)
    noise = LabelNoise(flip, 3)
    winner, bounds = base.smoothed(x, [noise])
    # Certified from the exact probability, which is the more demanding test; Chernoff's bound is above it.
    exact = 1 - distribution(base, x, base.labels, noise).gather(1, winner[:, None]).squeeze(1)
    thresholds = log_thresholds(noise, 2)
    flips = certified_flips(exact.log(), thresholds)
    assert bool((certified_flips(bounds[0], thresholds) <= flips).all())
    for n in range(int(flips.max()) + 1):
        for labels in flipped(base.labels, 3, n):
            after = distribution(base, x, labels, noise).argmax(dim=1)
            assert bool((after == winner)[flips >= n].all())


def smallest_probability(noise, r):
    """P(A) under y of the least probable event A with P(A) >= 1/2 under y', which differs in all r labels: plain."""
    found = []
    for noisy in itertools.product(range(noise.classes), repeat=r):  # y is all 0, y' all 1
        each = [[1 - noise.flip if v == k else noise.other for v in noisy] for k in (0, 1)]
        found.append(tuple(math.prod(p) for p in each))
    found.sort(key=lambda pair: pair[0] / pair[1])
    total, smallest = 0.0, 0.0
    for before, after in found:
        part = min(1.0, max(0.0, (0.5 - total) / after))
        total, smallest = total + part * after, smallest + part * before
    return smallest


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("flip", [0.01, 0.2, 0.4])
def test_thresholds_are_those_of_neyman_and_pearson(classes, flip):
    noise = LabelNoise(flip, classes)
    for r, value in enumerate(log_thresholds(noise, 4).tolist()):
        assert value == pytest.approx(math.log(smallest_probability(noise, r)), abs=ROUNDING)


@given(st.floats(0.001, 0.8), st.integers(2, 10))
@settings(deadline=None, max_examples=30)
def test_thresholds_are_above_those_of_the_divergence(flip, classes):
    flip = min(flip, 0.95 * (1 - 1 / classes))
    noise = LabelNoise(flip, classes)
    thresholds = log_thresholds(noise, 60)
    divergence = (1 - noise.flip - noise.other) * noise.ratio
    # 4 p (1 - p) < exp(-2 r D), the certificate of the paper
    r = torch.arange(61, dtype=torch.float64)
    root = torch.log((1 - (1 - (-2 * r * divergence).exp()).clamp(min=0).sqrt()) / 2)
    assert bool((thresholds >= root - ROUNDING)[torch.isfinite(root)].all())
    assert bool((thresholds.diff() <= ROUNDING).all())


def test_nothing_is_certified_where_the_prediction_is_not_certain():
    thresholds = log_thresholds(LabelNoise(0.1, 3), 5)
    p = torch.tensor([0.9, 0.5, 0.4], dtype=torch.float64).log()
    assert certified_flips(p, thresholds).tolist()[:2] == [-1, -1]
    assert certified_flips(p, thresholds)[2] == 0
    assert certified_flips(torch.tensor([-1e4], dtype=torch.float64), thresholds).tolist() == [5]


def test_a_bound_that_is_not_a_number_certifies_nothing():
    assert certified_flips(torch.tensor([math.nan]), log_thresholds(LabelNoise(0.1, 3), 5)).tolist() == [-1]


@pytest.mark.parametrize("flip", [0.0, 0.67, 1.0, -0.1])
def test_noise_that_tells_nothing_is_refused(flip):
    with pytest.raises(ValueError, match="Expected `flip` between 0 and 1 - 1 / classes"):
        LabelNoise(flip, 3)


def test_more_labels_withstand_more_flips():
    medians = []
    for samples in (100, 1000):
        base, x = problem(2, samples=samples)  # three classes well apart
        winner, bounds = base.smoothed(x, [LabelNoise(0.05, 3)])
        medians.append(certified_flips(bounds[0], log_thresholds(LabelNoise(0.05, 3), 400)).double().median())
        assert winner.tolist() == [0, 1, 2]
    assert medians[1] > 3 * medians[0] > 0


def test_noise_that_hardly_ever_comes_overflows_nothing():
    base, x = problem(1, samples=200)
    _, bounds = base.smoothed(x, [LabelNoise(1e-6, 3)])
    assert bool(torch.isfinite(bounds).all())
