import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agt_lightning.errors import UnsoundBoundError
from agt_lightning.metrics.functional import certified_mse


@given(seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=50, deadline=None)
def test_value_is_just_above_the_exact_rational_mean(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randn(5, 3, generator=generator, dtype=dtype)
    upper = lower + torch.rand(5, 3, generator=generator, dtype=dtype)
    target = torch.randn(5, 3, generator=generator, dtype=dtype)
    ends = zip(lower.flatten().tolist(), upper.flatten().tolist(), target.flatten().tolist(), strict=True)
    exact = sum(max((Fraction(a) - Fraction(y)) ** 2, (Fraction(b) - Fraction(y)) ** 2) for a, b, y in ends) / 15
    value = certified_mse(lower, upper, target)
    assert value.dtype == torch.float64
    assert exact <= Fraction(value.item()) <= exact * Fraction(1 + 1e-10)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", ["lower", "upper", "target"])
def test_broken_values_make_the_result_infinite(bad: float, position: str) -> None:
    values = {"lower": torch.zeros(3), "upper": torch.zeros(3), "target": torch.zeros(3)}
    values[position][1] = bad
    if position == "lower" and bad == math.inf:
        values["upper"][1] = bad
    if position == "upper" and bad == -math.inf:
        values["lower"][1] = bad
    assert certified_mse(**values).item() == math.inf


@pytest.mark.parametrize("shape", [(), (4,), (4, 1), (2, 3, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    value = certified_mse(torch.zeros(shape), torch.full(shape, 2.0), torch.zeros(shape))
    assert value.item() == pytest.approx(4.0)


@pytest.mark.parametrize(("outputs", "target"), [((4, 1), (4,)), ((4,), (4, 1)), ((4, 2), (4, 1)), ((1,), ())])
def test_shapes_never_broadcast(outputs: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected `target` of the outputs' shape .* Reshape one to the other"):
        certified_mse(torch.zeros(outputs), torch.zeros(outputs), torch.zeros(target))


def test_no_elements_prove_nothing() -> None:
    assert certified_mse(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0, 2)).item() == math.inf


def test_integer_targets_and_half_precision_bounds() -> None:
    half = torch.tensor([300.0, 400.0], dtype=torch.float16)
    assert certified_mse(half, half, torch.tensor([0, 0])).item() == pytest.approx(125_000)


def test_swapped_bounds_raise() -> None:
    with pytest.raises(UnsoundBoundError, match="Expected `lower` <= `upper`"):
        certified_mse(torch.ones(2), torch.zeros(2), torch.zeros(2))


def test_gradient_reaches_the_worse_bound_only() -> None:
    lower, upper = torch.tensor([-1.0, 0.0], requires_grad=True), torch.tensor([0.0, 3.0], requires_grad=True)
    certified_mse(lower, upper, torch.zeros(2)).backward()
    torch.testing.assert_close(lower.grad, torch.tensor([-1.0, 0.0]))
    torch.testing.assert_close(upper.grad, torch.tensor([0.0, 3.0]))
