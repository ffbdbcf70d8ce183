from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agt_lightning.domains.influence.sgd_map import UpdateFactors
from tests.domains.influence.oracles import F64, Training, random_queries, random_training

EXACT = 1e-11

OPTIONS = [
    {},
    {"weight_decay": 0.3},
    {"momentum": 0.8},
    {"momentum": 0.8, "dampening": 0.5},
    {"momentum": 0.7, "nesterov": True},
    {"momentum": 0.7, "nesterov": True, "weight_decay": 0.2},
    {"momentum": 0.6, "dampening": 0.4, "weight_decay": 0.1},
]


def check_against_training(training: Training, *, identify: bool = True) -> None:
    """Outputs and coefficients equal those of training in torch, on the labels and on labels moved one by one."""
    queries = random_queries(3)
    influence = training.recorded(identify=identify)
    outputs = training.outputs(training.targets[None], queries)[0]
    assert torch.allclose(influence.outputs(queries), outputs, rtol=0, atol=EXACT)

    samples, count = training.sample_of(influence), len(influence.targets)
    last = training.targets.shape[1] - 1
    moved = training.targets.repeat(count, 1, 1)
    moved[torch.arange(count), samples, last] += 1.0
    differences = training.outputs(moved, queries) - outputs
    assert torch.allclose(influence.coefficients(queries).T, differences[..., last], rtol=0, atol=EXACT)
    others = differences[..., :last]
    assert torch.equal(others, torch.zeros_like(others)) or others.abs().max() < EXACT


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("classes", [2, 3])
def test_coefficients_are_difference_quotients_of_training(options, classes):
    check_against_training(random_training(3, classes=classes, **options))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_head_without_bias(options):
    check_against_training(replace(random_training(4, **options), bias=False))


def test_bias_in_a_group_of_its_own():
    training = random_training(5, momentum=0.5, weight_decay=0.4)
    check_against_training(replace(training, bias_options={"weight_decay": 0.0, "momentum": 0.0, "lr": 0.3}))


def test_frozen_bias_has_rate_zero():
    check_against_training(replace(random_training(5, momentum=0.5), bias_options={"lr": 0.0}))


def test_momentum_that_starts_late_and_pauses():
    training = random_training(6, dampening=0.3)
    check_against_training(replace(training, momenta=[0.0, 0.7, 0.0, 0.9]))


def test_samples_known_by_content():
    check_against_training(random_training(8, momentum=0.9), identify=False)


def test_a_sample_twice_in_a_batch_counts_twice():
    training = random_training(9)
    batches = [torch.tensor([0, 0, 1]), torch.tensor([2, 3, 4, 5, 0, 2])]
    check_against_training(replace(training, batches=batches, rates=[0.3, 0.2]))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    weight_decay=st.sampled_from([0.0, 0.2]),
    momentum=st.floats(0, 0.95),
    dampening=st.floats(0, 1),
)
def test_any_settings(seed, weight_decay, momentum, dampening):
    check_against_training(
        random_training(seed, weight_decay=weight_decay, momentum=momentum, dampening=dampening),
    )


def test_step_coefficients_add_up_to_the_coefficients():
    training = random_training(2, momentum=0.9, weight_decay=0.1)
    influence, queries = training.recorded(), random_queries(4)
    total = torch.zeros(4, len(influence.targets), dtype=F64)
    for step, coefficients in influence.step_coefficients(queries):
        for position, row in enumerate(step.rows.tolist()):
            total[:, influence.sample_of_row[row]] += coefficients[:, position]
    assert torch.allclose(total, influence.coefficients(queries), rtol=0, atol=EXACT)


def test_rounding_is_covered_by_the_slack():
    training = random_training(2, momentum=0.9, dampening=0.1)
    influence, queries = training.recorded(), random_queries(50)
    slack = influence.predict(queries).slack(1.0)
    error = (influence.outputs(queries) - training.outputs(training.targets[None], queries)[0]).abs().amax(dim=1)
    assert bool((error <= slack).all())
    assert float(slack.max()) < 1e-10


_factors = UpdateFactors.of_settings


def _dampened_at_first(settings, *, started):
    return _factors(settings, started=True)


def _without_decay(settings, *, started):
    return _factors(settings, started=started)._replace(decay=0.0)


def _without_lookahead(settings, *, started):
    return _factors(replace(settings, nesterov=False), started=started)


def _without_buffer(settings, *, started):
    return _factors(replace(settings, momentum=0.0), started=started)


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        (_dampened_at_first, {"momentum": 0.8, "dampening": 0.5}),
        (_without_decay, {"weight_decay": 0.3}),
        (_without_lookahead, {"momentum": 0.7, "nesterov": True}),
        (_without_buffer, {"momentum": 0.8}),
    ],
)
def test_planted_fault_is_noticed(fault, options, monkeypatch):
    training = random_training(3, **options)
    check_against_training(training)
    monkeypatch.setattr(UpdateFactors, "of_settings", fault)
    with pytest.raises(AssertionError):
        check_against_training(training)


def test_wrong_slopes_are_noticed():
    training = random_training(3)
    wrong = replace(training, rates=[1.01 * rate for rate in training.rates])
    queries = random_queries(2)
    outputs = training.outputs(training.targets[None], queries)[0]
    assert not torch.allclose(wrong.recorded().outputs(queries), outputs, rtol=0, atol=EXACT)


def test_queries_of_another_width_are_refused():
    with pytest.raises(ValueError, match="Expected queries of shape"):
        random_training(0).recorded().outputs(torch.zeros(1, 5))
