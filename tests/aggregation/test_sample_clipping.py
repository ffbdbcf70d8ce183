import pytest
import torch

from agt_lightning.aggregation import NormClipping, ValueClipping
from agt_lightning.gradients import Elementwise
from agt_lightning.interval import Interval
from tests.aggregation.oracles import KAPPA, check_norm_clipping, clip_box

ROUNDING = 1e-14
"""Entries are at most κ, norms of four entries cost a few roundings."""


def test_norm_clipping_is_exact_for_boxes():
    check_norm_clipping(clip_box)


def test_norm_clipping_contains_sampled_points():
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    box = Interval(ends.amin(dim=0), ends.amax(dim=0))
    bounds = clip_box(KAPPA, box)
    for _ in range(200):
        point = box.lower + torch.rand(5, 7, generator=generator, dtype=torch.float64) * box.width
        clipped = point * (KAPPA / point.norm(dim=1, keepdim=True)).clamp(max=1.0)
        assert bounds.contains(clipped, ROUNDING)


def test_norm_clipping_of_points_is_the_clipped_point():
    point = torch.tensor([[3.0, 4.0], [0.1, 0.0], [0.0, 0.0]], dtype=torch.float64)
    gradient = Elementwise(Interval.point(point))
    clipped = NormClipping.of(1.0, [gradient])(gradient.block(0, 2))
    assert clipped.is_point
    expected = torch.tensor([[0.6, 0.1, 0.0], [0.8, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(clipped.lower, expected, rtol=0, atol=ROUNDING)


def test_norms_run_over_all_parameters():
    parts = [Elementwise(Interval.point(torch.tensor([[value]], dtype=torch.float64))) for value in (3.0, 4.0)]
    clipping = NormClipping.of(1.0, parts)
    assert [clipping(part.block(0, 1)).lower.item() for part in parts] == pytest.approx([0.6, 0.8])


def test_a_block_of_points_is_clipped_by_every_norm_of_the_whole():
    """One entry is known, as that of a bias in ``-y (w x + b)``; the factor follows the others all the same."""
    known = Interval.point(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    others = Interval(torch.tensor([[0.0], [-2.0]]).double(), torch.tensor([[3.0], [-2.0]]).double())
    clipped = NormClipping.of(KAPPA, [Elementwise(known), Elementwise(others)])(Elementwise(known).block(0, 1))
    for other in (others.lower, others.upper):
        norm = (known.lower.square() + other.square()).sqrt()
        assert clipped.contains((known.lower * (KAPPA / norm).clamp(max=1.0)).T, 0.0)
    assert clipped.width[0, 0] > 0.1


def test_the_rest_of_a_squared_norm_is_not_lost_beside_a_large_entry():
    """1e16 + 1 is 1e16: what is left of the norm without the first entry is one, not zero."""
    box = Interval(torch.tensor([[-1e8, 1.0]]).double(), torch.tensor([[-1e-3, 1.0]]).double())
    clipped = clip_box(0.1, box)
    smallest = torch.tensor([-1e-3, 1.0], dtype=torch.float64)
    assert clipped.upper[0, 0] >= (smallest * (0.1 / smallest.norm()))[0]


def test_value_clipping_is_the_clamp_of_both_bounds():
    box = Interval(torch.tensor([[-3.0, -0.2, 2.0]]), torch.tensor([[-2.0, 0.3, 5.0]]))
    clipped = ValueClipping(1.0)(box)
    assert torch.equal(clipped.lower, box.lower.clamp(-1, 1))
    assert torch.equal(clipped.upper, box.upper.clamp(-1, 1))
    assert ValueClipping(1.0)(Interval.point(box.lower)).is_point
