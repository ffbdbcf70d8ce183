import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agt_lightning.certificates import (
    binary_cross_entropy_bounds,
    cross_entropy_bounds,
    possible_classes,
    squared_error_bounds,
    targeted_attack_reachable,
)
from agt_lightning.certificates.goals import class_indices, finite_samples, is_single_logit
from agt_lightning.interval import Interval

ROUNDING = 1e-13
"""Relative to 1 + loss: a few hundred units in the last place of float64, for exp and log on both sides."""

SAMPLES = 50

boxes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "batch": st.integers(1, 5),
        "classes": st.integers(2, 6),
        "scale": st.sampled_from([1e-3, 1.0, 30.0, 500.0]),
        "width": st.sampled_from([0.0, 1e-15, 0.5, 20.0]),
    }
)


def draw_box(shape: tuple[int, ...], seed: int, scale: float, width: float) -> tuple[Interval, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    center = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    radius = width * torch.rand(shape, generator=generator, dtype=torch.float64)
    return Interval(center - radius, center + radius), generator


def sample_box(box: Interval, generator: torch.Generator) -> Tensor:
    """Uniform points, corners and faces of the box, stacked along a new leading axis."""
    shape = (SAMPLES, *box.shape)
    weight = (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5).clamp(0, 1)
    return torch.maximum(box.lower, torch.minimum(box.upper, torch.lerp(box.lower, box.upper, weight)))


def corners(box: Interval) -> Tensor:
    """All corners of a box of shape ``(1, classes)``, as ``(corners, classes)``."""
    return torch.stack([torch.stack(c) for c in itertools.product(*zip(box.lower[0], box.upper[0], strict=True))])


@given(boxes)
@settings(max_examples=60, deadline=None)
def test_squared_error_bounds_contain_sampled_losses_exactly(case: dict) -> None:
    box, generator = draw_box((case["batch"], case["classes"]), case["seed"], case["scale"], case["width"])
    target = case["scale"] * torch.randn(box.shape, generator=generator, dtype=torch.float64)
    bounds = squared_error_bounds(box, target)
    for point in sample_box(box, generator):
        assert bounds.contains((point - target).square())


@given(boxes)
@settings(max_examples=60, deadline=None)
def test_squared_error_bounds_are_attained(case: dict) -> None:
    box, generator = draw_box((case["batch"], case["classes"]), case["seed"], case["scale"], case["width"])
    target = case["scale"] * torch.randn(box.shape, generator=generator, dtype=torch.float64)
    bounds = squared_error_bounds(box, target)
    nearest = torch.maximum(box.lower, torch.minimum(box.upper, target))
    assert torch.equal(bounds.lower, (nearest - target).square())
    ends = torch.stack([(box.lower - target).square(), (box.upper - target).square()])
    assert torch.equal(bounds.upper, ends.amax(0))


def test_squared_error_of_a_point_is_a_point() -> None:
    bounds = squared_error_bounds(Interval.point(torch.tensor([1.0, -2.0])), torch.zeros(2))
    assert bounds.is_point
    assert bounds.lower.tolist() == [1.0, 4.0]


def test_squared_error_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 1\), but got \(4,\)\. Reshape"):
        squared_error_bounds(Interval.point(torch.zeros(4, 1)), torch.zeros(4))


@given(boxes)
@settings(max_examples=60, deadline=None)
def test_cross_entropy_bounds_contain_sampled_losses(case: dict) -> None:
    box, generator = draw_box((case["batch"], case["classes"]), case["seed"], case["scale"], case["width"])
    target = torch.randint(case["classes"], (case["batch"],), generator=generator)
    bounds = cross_entropy_bounds(box, target)
    for point in sample_box(box, generator):
        loss = F.cross_entropy(point, target, reduction="none")
        slack = ROUNDING * (1 + point.abs().amax())
        assert bounds.contains(loss, tolerance=float(slack))


@given(boxes)
@settings(max_examples=40, deadline=None)
def test_cross_entropy_bounds_are_attained_at_corners(case: dict) -> None:
    box, generator = draw_box((1, case["classes"]), case["seed"], case["scale"], case["width"])
    target = torch.randint(case["classes"], (1,), generator=generator)
    bounds = cross_entropy_bounds(box, target)
    points = corners(box)
    losses = F.cross_entropy(points, target.expand(len(points)), reduction="none")
    slack = ROUNDING * (1 + float(points.abs().amax()))
    assert bounds.lower.item() == pytest.approx(losses.min().item(), rel=ROUNDING, abs=slack)
    assert bounds.upper.item() == pytest.approx(losses.max().item(), rel=ROUNDING, abs=slack)


@given(boxes)
@settings(max_examples=40, deadline=None)
def test_binary_cross_entropy_agrees_with_the_two_logits_zero_and_f(case: dict) -> None:
    box, generator = draw_box((case["batch"],), case["seed"], case["scale"], case["width"])
    target = torch.randint(2, (case["batch"],), generator=generator)
    zeros = torch.zeros_like(box.lower)
    pair = Interval(torch.stack([zeros, box.lower], 1), torch.stack([zeros, box.upper], 1))
    one, two = binary_cross_entropy_bounds(box, target.double()), cross_entropy_bounds(pair, target)
    torch.testing.assert_close(one.lower, two.lower, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(one.upper, two.upper, rtol=ROUNDING, atol=0)


@given(boxes)
@settings(max_examples=40, deadline=None)
def test_binary_cross_entropy_bounds_contain_sampled_losses(case: dict) -> None:
    box, generator = draw_box((case["batch"], 1), case["seed"], case["scale"], case["width"])
    target = torch.randint(2, (case["batch"], 1), generator=generator).double()
    bounds = binary_cross_entropy_bounds(box, target)
    for point in sample_box(box, generator):
        loss = F.binary_cross_entropy_with_logits(point, target, reduction="none").reshape(-1)
        assert bounds.contains(loss, tolerance=ROUNDING * (1 + float(point.abs().amax())))


@pytest.mark.parametrize("logit", [25.0, 37.0, 700.0, 1e300])
def test_losses_of_large_logits_keep_their_tail(logit: float) -> None:
    box = Interval.point(torch.tensor([logit], dtype=torch.float64))
    wrong = binary_cross_entropy_bounds(box, torch.tensor([0])).upper.item()
    right = binary_cross_entropy_bounds(box, torch.tensor([1])).upper.item()
    assert wrong >= logit + math.log1p(math.exp(-logit)) - math.ulp(logit)
    assert right == pytest.approx(math.log1p(math.exp(-logit)), rel=ROUNDING)


def test_overflowing_cross_entropy_is_infinite_not_nan() -> None:
    huge = torch.finfo(torch.float64).max
    ends = torch.full((1, 2), huge, dtype=torch.float64)
    box = Interval.trusted(-ends, ends)
    bounds = cross_entropy_bounds(box, torch.tensor([0]))
    assert bounds.upper.item() == math.inf
    assert bounds.lower.item() == 0.0


def test_cross_entropy_of_one_logit_names_the_binary_function() -> None:
    with pytest.raises(ValueError, match=r"got \(3, 1\)\. Use `binary_cross_entropy_bounds`"):
        cross_entropy_bounds(Interval.point(torch.zeros(3, 1)), torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"got \(3, 2\)\. Use `cross_entropy_bounds`"):
        binary_cross_entropy_bounds(Interval.point(torch.zeros(3, 2)), torch.zeros(3).long())


@given(boxes)
@settings(max_examples=60, deadline=None)
def test_possible_classes_contain_every_sampled_prediction(case: dict) -> None:
    box, generator = draw_box((case["batch"], case["classes"]), case["seed"], case["scale"], case["width"])
    possible = possible_classes(box)
    for point in sample_box(box, generator):
        assert possible.gather(1, point.argmax(1, keepdim=True)).all()


@given(boxes)
@settings(max_examples=40, deadline=None)
def test_every_possible_class_is_the_largest_at_some_corner(case: dict) -> None:
    box, _ = draw_box((1, case["classes"]), case["seed"], case["scale"], case["width"])
    points = corners(box)
    attained = (points == points.amax(1, keepdim=True)).any(0)
    assert torch.equal(possible_classes(box)[0], attained)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=2, max_size=5))
@settings(max_examples=100, deadline=None)
def test_possible_classes_follow_the_corrected_equation_with_many_ties(ends: list[tuple[int, int]]) -> None:
    lower = [float(low) for low, _ in ends]
    upper = [float(low + width) for low, width in ends]
    expected = [not any(upper[i] < lower[j] for j in range(len(ends)) if j != i) for i in range(len(ends))]
    assert possible_classes(Interval(torch.tensor([lower]), torch.tensor([upper])))[0].tolist() == expected


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_one_logit_decides_by_its_sign_and_a_tie_leaves_both(shape: tuple[int, ...]) -> None:
    lower = torch.tensor([0.1, -2.0, -1.0, 0.0, -1.0]).reshape(shape)
    upper = torch.tensor([2.0, -0.1, 1.0, 1.0, 0.0]).reshape(shape)
    expected = [[False, True], [True, False], [True, True], [True, True], [True, True]]
    assert possible_classes(Interval(lower, upper)).tolist() == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["lower", "upper"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_broken_bound_leaves_every_class_of_its_sample_only(bad: float, side: str, index: int) -> None:
    ends = {"lower": torch.tensor([[5.0, 0.0, 0.0]] * 2), "upper": torch.tensor([[6.0, 1.0, 1.0]] * 2)}
    ends[side][0, index] = bad
    possible = possible_classes(Interval.trusted(**ends))
    assert possible.tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_broken_single_logit_leaves_both_classes(bad: float) -> None:
    assert possible_classes(Interval.point(torch.tensor([bad]))).tolist() == [[True, True]]


@pytest.mark.parametrize("shape", [(), (2, 0), (2, 3, 4)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Expected logits of shape"):
        possible_classes(Interval.point(torch.zeros(shape)))


@pytest.mark.parametrize("shape", [(0, 3), (0,), (0, 1)])
def test_no_samples_give_no_rows(shape: tuple[int, ...]) -> None:
    box = Interval.point(torch.zeros(shape))
    loss_bounds = binary_cross_entropy_bounds if is_single_logit(box) else cross_entropy_bounds
    assert possible_classes(box).shape[0] == 0
    assert finite_samples(box).shape == (0,)
    assert loss_bounds(box, torch.zeros(0).long()).shape == (0,)


def test_attack_reaches_exactly_what_is_possible_and_unsafe() -> None:
    for possible, safe in itertools.product(itertools.product([False, True], repeat=3), repeat=2):
        expected = any(p and not s for p, s in zip(possible, safe, strict=True))
        assert targeted_attack_reachable(torch.tensor([possible]), torch.tensor([safe])).item() is expected


def test_attack_needs_boolean_sets_of_one_shape() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(TypeError, match="Expected boolean"):
        targeted_attack_reachable(mask, mask.long())
    with pytest.raises(ValueError, match=r"one shape \(batch, classes\), but got \(2, 3\) and \(3,\)"):
        targeted_attack_reachable(mask, mask[0])


@pytest.mark.parametrize("target", [[3, 0], [-1, 0], [-100, 0]])
def test_classes_out_of_range_are_refused(target: list[int]) -> None:
    with pytest.raises(ValueError, match=f"classes 0 to 2, but got {target[0]}"):
        class_indices(Interval.point(torch.zeros(2, 3)), torch.tensor(target))


@pytest.mark.parametrize("target", [[0.5, 0.0], [2.0, 0.0], [math.nan, 0.0]])
def test_binary_targets_other_than_zero_and_one_are_refused(target: list[float]) -> None:
    with pytest.raises(ValueError, match="classes 0 to 1"):
        class_indices(Interval.point(torch.zeros(2)), torch.tensor(target))


def test_one_hot_targets_are_refused() -> None:
    box = Interval.point(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"`target` of shape \(2,\), one class a sample, but got \(2, 3\)"):
        class_indices(box, torch.zeros(2, 3).long())
    with pytest.raises(TypeError, match="integer type, but got torch.float32"):
        class_indices(box, torch.zeros(2))
