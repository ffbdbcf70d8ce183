import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agt_lightning.metrics.functional import certified_accuracy, targeted_attack_success

CLASSES = 4
safe_sets = st.lists(st.lists(st.integers(0, CLASSES - 1), max_size=CLASSES), min_size=CLASSES, max_size=CLASSES)


@given(seed=st.integers(0, 2**31), safe_classes=safe_sets)
@settings(max_examples=50, deadline=None)
def test_value_equals_the_slow_reference(seed: int, safe_classes: list[list[int]]) -> None:
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randint(-4, 4, (12, CLASSES), generator=generator).float()
    upper = lower + torch.randint(0, 3, lower.shape, generator=generator)
    target = torch.randint(CLASSES, (12,), generator=generator)
    reached = 0
    for low, high, label in zip(lower.tolist(), upper.tolist(), target.tolist(), strict=True):
        possible = [i for i in range(CLASSES) if not any(high[i] < low[j] for j in range(CLASSES) if j != i)]
        reached += any(i not in safe_classes[label] for i in possible)
    value = targeted_attack_success(lower, upper, target, safe_classes)
    assert value.item() == pytest.approx(reached / 12)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_by_default_it_is_one_minus_certified_accuracy(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randn(16, CLASSES, generator=generator)
    upper = lower + torch.rand(16, CLASSES, generator=generator)
    target = torch.randint(CLASSES, (16,), generator=generator)
    success = targeted_attack_success(lower, upper, target).item()
    assert success == 1 - certified_accuracy(lower, upper, target).item()
    assert success == targeted_attack_success(lower, upper, target, [[i] for i in range(CLASSES)]).item()


def test_one_logit_has_two_classes() -> None:
    lower, upper = torch.tensor([0.1, -2.0, -1.0]), torch.tensor([1.0, -1.0, 1.0])
    target = torch.tensor([1, 1, 1])
    assert targeted_attack_success(lower, upper, target).item() == pytest.approx(2 / 3)
    assert targeted_attack_success(lower, upper, target, [[0], [0, 1]]).item() == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_bounds_count_as_success(bad: float) -> None:
    bounds = torch.tensor([[5.0, bad, 0.0]])
    assert targeted_attack_success(bounds, bounds, torch.tensor([0]), [[0, 1], [1], [2]]).item() == 1.0


def test_no_samples_prove_nothing() -> None:
    empty = torch.zeros(0, 3)
    assert targeted_attack_success(empty, empty, torch.zeros(0).long()).item() == 1.0


def test_a_missing_safe_set_raises() -> None:
    bounds = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="one safe set for each of 3 classes, but got `safe_classes` of length 2"):
        targeted_attack_success(bounds, bounds, torch.tensor([0]), [[0], [1]])


@pytest.mark.parametrize("prediction", [2, -1])
def test_a_safe_prediction_out_of_range_raises(prediction: int) -> None:
    bounds = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=rf"`safe_classes\[1\]` to hold classes 0 to 1, but got \[{prediction}\]"):
        targeted_attack_success(bounds, bounds, torch.tensor([0]), [[0], [prediction]])
