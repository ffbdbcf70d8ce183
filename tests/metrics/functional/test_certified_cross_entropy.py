import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agt_lightning.metrics.functional import certified_cross_entropy


@given(seed=st.integers(0, 2**31), classes=st.integers(2, 5), scale=st.sampled_from([0.1, 1.0, 50.0]))
@settings(max_examples=50, deadline=None)
def test_value_is_just_above_the_slow_reference(seed: int, classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    lower = scale * torch.randn(6, classes, generator=generator, dtype=torch.float64)
    upper = lower + scale * torch.rand(6, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (6,), generator=generator)
    losses = []
    for low, high, label in zip(lower.tolist(), upper.tolist(), target.tolist(), strict=True):
        losses.append(math.log1p(math.fsum(math.exp(high[j] - low[label]) for j in range(classes) if j != label)))
    mean = math.fsum(losses) / 6
    assert mean <= certified_cross_entropy(lower, upper, target).item() <= mean * (1 + 1e-10)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_logit(shape: tuple[int, ...]) -> None:
    lower, upper = torch.tensor([-1.0, -2.0, 30.0]).reshape(shape), torch.tensor([2.0, 1.0, 40.0]).reshape(shape)
    expected = (math.log1p(math.e) + math.log1p(math.e) + 40.0) / 3
    value = certified_cross_entropy(lower, upper, torch.tensor([1.0, 0.0, 0.0]))
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("label", [0, 1])
def test_broken_bounds_make_the_result_infinite(bad: float, label: int) -> None:
    bounds = torch.tensor([[0.0, 0.0], [0.0, bad]])
    assert certified_cross_entropy(bounds, bounds, torch.tensor([0, label])).item() == math.inf
    assert certified_cross_entropy(bounds[:, 1], bounds[:, 1], torch.tensor([0, label])).item() == math.inf


def test_an_infinite_bound_that_the_worst_case_does_not_read_counts_too() -> None:
    lower, upper = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.inf, 0.0]])
    assert certified_cross_entropy(lower, upper, torch.tensor([0])).item() == math.inf


@pytest.mark.parametrize("shape", [(0, 3), (0,)])
def test_no_samples_prove_nothing(shape: tuple[int, ...]) -> None:
    assert certified_cross_entropy(torch.zeros(shape), torch.zeros(shape), torch.zeros(0).long()).item() == math.inf


def test_a_target_out_of_range_raises() -> None:
    with pytest.raises(ValueError, match="classes 0 to 2, but got 3"):
        certified_cross_entropy(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([3]))
