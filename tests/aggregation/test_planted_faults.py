"""The oracles of aggregation notice when one piece is broken."""

import pytest
import torch

from agt_lightning.aggregation import NormClipping, SampleSet, bounded_descent, top_n_sum, unbounded_descent
from agt_lightning.gradients import Elementwise
from agt_lightning.interval import Interval
from tests.aggregation.oracles import (
    cases,
    check_bounded_descent,
    check_norm_clipping,
    check_top_n,
    check_unbounded_descent,
    clip_box,
    clippings,
)
from tests.faults import Fault, require_checks_pass


def all_bounded(descent=bounded_descent):
    for case in cases():
        check_bounded_descent(descent, case)


def all_unbounded(descent=unbounded_descent):
    for case in cases():
        for clipping in clippings(case.clean):
            check_unbounded_descent(descent, case, clipping)


def all_top_n(top_n=top_n_sum):
    check_top_n(top_n)


def all_clippings(clip=clip_box):
    check_norm_clipping(clip)


def one_sample_less(clean, poisoned, samples, n, budget):
    return bounded_descent(clean, poisoned, samples, max(0, n - 1), budget)


def without_poisoned_pass(clean, poisoned, samples, n, budget):
    return bounded_descent(clean, None, samples, n, budget)


def everyone_at_unit_weight(clean, poisoned, samples, n, budget):
    return bounded_descent(clean, poisoned, SampleSet(torch.ones_like(samples.weights), samples.poisonable), n, budget)


def without_mirror(clean, poisoned, samples, n, budget):
    plain = bounded_descent(clean, None, samples, 0, budget)
    return Interval.trusted(plain.lower, bounded_descent(clean, poisoned, samples, n, budget).upper)


def trusted_samples_forgotten(clean, poisoned, samples, n, budget):
    rows = samples.poisonable
    weights = (
        samples.weights if rows is None else torch.zeros_like(samples.weights).scatter(0, rows, samples.weights[rows])
    )
    return bounded_descent(clean, poisoned, SampleSet(weights, rows), n, budget)


def negative_kappa(gradient, samples, n, clipping, budget):
    bounds = unbounded_descent(gradient, samples, n, clipping, budget)
    plain = unbounded_descent(gradient, samples, 0, clipping, budget)
    return Interval.trusted(bounds.lower, plain.upper)


def substitution_of_all_samples(gradient, samples, n, clipping, budget):
    return unbounded_descent(gradient, SampleSet(samples.weights), n, clipping, budget)


def without_clamp(gains, n):
    return gains.sort(dim=1, descending=True).values[:, :n].sum(dim=1)


def clip_by_largest_norm(kappa, gradients_box):
    largest = gradients_box.magnitude.norm(dim=1, keepdim=True)
    factor = (kappa / largest).clamp(max=1.0)
    return Interval.trusted(gradients_box.lower * factor, gradients_box.upper * factor)


def clip_with_others_exchanged(kappa, gradients_box):
    factored = Elementwise(gradients_box)
    clipping = NormClipping.of(kappa, [factored])
    swapped = Interval.trusted(clipping.square_norms.upper, clipping.square_norms.lower)
    block = NormClipping(kappa, swapped)(factored.block(0, factored.elements))
    return Interval.trusted(block.lower.T, block.upper.T)


FAULTS = [
    Fault("SEMax of n - 1", all_bounded, one_sample_less),
    Fault("poisoned pass forgotten", all_bounded, without_poisoned_pass),
    Fault("weights forgotten", all_bounded, everyone_at_unit_weight),
    Fault("lower bound not mirrored", all_bounded, without_mirror),
    Fault("trusted samples left out of the sum", all_bounded, trusted_samples_forgotten),
    Fault("substitution only downwards", all_unbounded, negative_kappa),
    Fault("trusted samples substituted", all_unbounded, substitution_of_all_samples),
    Fault("negative gains taken", all_top_n, without_clamp),
    Fault("top n - 1", all_top_n, lambda gains, n: top_n_sum(gains, max(0, n - 1))),
    Fault("all gains taken", all_top_n, lambda gains, n: gains.clamp(min=0).sum(dim=1)),
    Fault("clipping by the largest norm", all_clippings, clip_by_largest_norm),
    Fault("clipping with the others exchanged", all_clippings, clip_with_others_exchanged),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_oracles_notice_a_broken_piece(fault):
    fault.require_noticed("differs from")


def test_without_faults_the_checks_pass():
    require_checks_pass(FAULTS)
