"""Certificates with a part left out: the oracles must see it."""

import math

import pytest
import torch

from recipes.baselines import dpa, smoothing
from tests.recipes.baselines import test_dpa, test_smoothing


def for_many_seeds(test, flip):
    for seed in range(20):
        test.hypothesis.inner_test(seed, flip)


def without_tie_break(counts):
    top = counts.topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]) // 2


def one_vote_a_flip(counts):
    return 2 * dpa.certified_flips(counts)


@pytest.mark.parametrize(("fault", "ballot"), [(without_tie_break, [3, 5, 1]), (one_vote_a_flip, [1, 6, 2])])
def test_ballots_show_it(monkeypatch, fault, ballot):
    monkeypatch.setattr(test_dpa, "certified_flips", fault)
    with pytest.raises(AssertionError):
        test_dpa.test_certificate_is_exact_for_ballots.hypothesis.inner_test(ballot)


def only_the_nearest_class(self, winner, noise):
    """The largest of the probabilities to lose against one class, not their sum, and half of it."""
    return original(self, winner, noise) - math.log(2 * noise.classes)


original = smoothing.BinnedWeights.log_probability


def test_noisy_labels_show_a_bound_that_is_too_small(monkeypatch):
    monkeypatch.setattr(smoothing.BinnedWeights, "log_probability", only_the_nearest_class)
    with pytest.raises(AssertionError):
        for_many_seeds(test_smoothing.test_chernoff_bounds_the_probability_of_another_prediction, 0.5)


def thresholds_of_a_quarter(noise, largest):
    return genuine(noise, largest) + math.log(4)


genuine = smoothing.log_thresholds


def test_noisy_labels_show_thresholds_that_are_too_large(monkeypatch):
    monkeypatch.setattr(test_smoothing, "log_thresholds", thresholds_of_a_quarter)
    with pytest.raises(AssertionError):
        test_smoothing.test_thresholds_are_those_of_neyman_and_pearson(flip=0.2, classes=3)
    with pytest.raises(AssertionError):
        for_many_seeds(test_smoothing.test_no_flips_within_the_certificate_change_the_smoothed_prediction, 0.3)


def test_all_oracles_pass_without_a_fault():
    for ballot in ([3, 5, 1], [1, 6, 2]):
        test_dpa.test_certificate_is_exact_for_ballots.hypothesis.inner_test(ballot)
    for seed in range(3):
        test_smoothing.test_chernoff_bounds_the_probability_of_another_prediction.hypothesis.inner_test(seed, 0.5)
        assert torch.isfinite(genuine(smoothing.LabelNoise(0.2, 3), seed)).all()
