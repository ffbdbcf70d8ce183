import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agt_lightning.metrics.functional import certified_rate


@given(seed=st.integers(0, 2**31), classes=st.integers(2, 5))
@settings(max_examples=50, deadline=None)
def test_value_equals_the_slow_reference(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randint(-4, 4, (12, classes), generator=generator).float()
    upper = lower + torch.randint(0, 3, lower.shape, generator=generator)
    certified = 0
    for low, high in zip(lower.tolist(), upper.tolist(), strict=True):
        winners = [i for i in range(classes) if all(low[i] > high[j] for j in range(classes) if j != i)]
        certified += len(winners)
    assert certified_rate(lower, upper).item() == pytest.approx(certified / 12)


def test_one_logit_away_from_zero_is_certified() -> None:
    lower, upper = torch.tensor([0.1, -2.0, -1.0, 0.0]), torch.tensor([1.0, -1.0, 1.0, 0.0])
    assert certified_rate(lower, upper).item() == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_bounds_are_not_certified(bad: float) -> None:
    bounds = torch.tensor([[0.0, bad, 1.0]])
    assert certified_rate(bounds, bounds).item() == 0.0


def test_equal_logits_are_not_certified_at_zero_width() -> None:
    assert certified_rate(torch.ones(3, 2), torch.ones(3, 2)).item() == 0.0


def test_no_samples_certify_nothing() -> None:
    assert certified_rate(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0.0
