import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agt_lightning.errors import UnsoundBoundError
from agt_lightning.metrics.functional import backdoor_accuracy, certified_accuracy


def slow_certified_accuracy(lower: Tensor, upper: Tensor, target: Tensor) -> float:
    certified = 0
    for low, high, label in zip(lower.tolist(), upper.tolist(), target.tolist(), strict=True):
        finite = all(math.isfinite(end) for end in low + high)
        beaten = [low[label] > high[j] for j in range(len(low)) if j != label]
        certified += finite and all(beaten)
    return certified / len(target)


@pytest.mark.parametrize("metric", [certified_accuracy, backdoor_accuracy])
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 5))
@settings(max_examples=50, deadline=None)
def test_value_equals_the_slow_reference(metric, seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randint(-4, 4, (12, classes), generator=generator).double()
    upper = lower + torch.randint(0, 3, lower.shape, generator=generator)
    lower[torch.rand(lower.shape, generator=generator) < 0.02] = -math.inf
    upper[torch.rand(lower.shape, generator=generator) < 0.02] = math.nan
    target = torch.randint(classes, (12,), generator=generator)
    expected = slow_certified_accuracy(lower, upper, target)
    assert metric(lower, upper, target).item() == pytest.approx(expected, rel=1e-6)


def test_a_tie_is_not_certified() -> None:
    lower, upper = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 1.0]])
    assert certified_accuracy(lower, upper, torch.tensor([0])).item() == 0.0


def test_a_wrong_but_constant_prediction_is_not_certified() -> None:
    lower, upper = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 1.0]])
    assert certified_accuracy(lower, upper, torch.tensor([1])).item() == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_bounds_are_not_certified(bad: float) -> None:
    lower, upper = torch.tensor([[2.0, bad]]), torch.tensor([[3.0, bad]])
    assert certified_accuracy(lower, upper, torch.tensor([0])).item() == 0.0


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.long, torch.bool])
def test_one_logit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    lower = torch.tensor([0.1, 0.0, -2.0, -2.0, 0.1, math.nan])
    upper = torch.tensor([1.0, 1.0, -1.0, 0.0, 1.0, math.nan])
    target = torch.tensor([1, 1, 0, 0, 0, 1]).to(dtype)
    assert certified_accuracy(lower.reshape(shape), upper.reshape(shape), target).item() == pytest.approx(2 / 6)
    assert certified_accuracy(lower.reshape(shape), upper.reshape(shape), target.reshape(6, 1)).item() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_float_type(dtype: torch.dtype) -> None:
    lower, upper = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=dtype), torch.tensor([[2.0, 0.5]] * 2, dtype=dtype)
    assert certified_accuracy(lower, upper, torch.tensor([0, 1])).item() == 0.5


@pytest.mark.parametrize("shape", [(0, 3), (0,), (0, 1)])
def test_no_samples_certify_nothing(shape: tuple[int, ...]) -> None:
    assert certified_accuracy(torch.zeros(shape), torch.zeros(shape), torch.zeros(0).long()).item() == 0.0


def test_swapped_bounds_raise() -> None:
    with pytest.raises(UnsoundBoundError, match="Pass the lower bounds first"):
        certified_accuracy(torch.ones(2, 2), torch.zeros(2, 2), torch.zeros(2).long())


def test_a_target_of_another_shape_raises() -> None:
    with pytest.raises(ValueError, match=r"`target` of shape \(2,\), one class a sample, but got \(2, 1\)"):
        certified_accuracy(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1).long())
