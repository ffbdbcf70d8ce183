import math

import pytest
import torch

from agt_lightning.errors import UnsoundBoundError
from agt_lightning.metrics.functional.bounds import checked_bounds


def test_broken_but_ordered_bounds_pass() -> None:
    lower = torch.tensor([math.nan, -math.inf, 0.0, math.inf])
    upper = torch.tensor([1.0, 0.0, math.inf, math.inf])
    bounds = checked_bounds(lower, upper)
    assert bounds.lower is lower
    assert bounds.upper is upper


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (1, 2, 3)])
def test_crossed_bounds_raise_with_the_worst_index(shape: tuple[int, ...]) -> None:
    size = torch.Size(shape).numel()
    upper = torch.zeros(size)
    lower = torch.linspace(1, 2, size) if size > 1 else torch.ones(1)
    worst = tuple(n - 1 for n in shape)
    with pytest.raises(UnsoundBoundError) as raised:
        checked_bounds(lower.reshape(shape), upper.reshape(shape))
    assert f"at index {worst} ({size} of {size} elements)" in str(raised.value)


def test_infinitely_crossed_bounds_raise() -> None:
    with pytest.raises(UnsoundBoundError, match=r"got \[inf, 0.0\] at index \(1,\) \(1 of 2"):
        checked_bounds(torch.tensor([0.0, math.inf]), torch.zeros(2))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"one shape, but got \(4, 1\) and \(4,\)"):
        checked_bounds(torch.zeros(4, 1), torch.zeros(4))


def test_types_must_agree_and_float() -> None:
    with pytest.raises(TypeError, match="got `lower` torch.int64 and `upper` torch.int64"):
        checked_bounds(torch.zeros(4).long(), torch.zeros(4).long())
    with pytest.raises(TypeError, match="got `lower` float and `upper` torch.float32"):
        checked_bounds(0.0, torch.zeros(4))
    with pytest.raises(TypeError, match="one dtype, but got `lower` torch.float32 and `upper` torch.float64"):
        checked_bounds(torch.zeros(4), torch.zeros(4).double())
