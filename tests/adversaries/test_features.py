"""Perturbed numbers as floating point holds them: rounded outward, and no further."""

import math
from fractions import Fraction

import pytest
import torch

from agt_lightning.adversaries.features import as_stored, moved_down, moved_up, perturbed

FLOATS = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_are_rounded_outward_by_at_most_one_unit(dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(500, dtype=dtype, generator=generator) * 10.0 ** torch.randint(-9, 9, (500,))
    by = torch.rand(500, dtype=dtype, generator=generator) * 10.0 ** torch.randint(-9, 9, (500,))
    values, by = values.to(dtype), by.to(dtype)
    for up, down, value, step in zip(moved_up(values, by), moved_down(values, by), values, by, strict=True):
        exact = Fraction(value.item()) + Fraction(step.item())
        below = torch.nextafter(up, torch.full_like(up, -math.inf))
        assert Fraction(below.item()) < exact <= Fraction(up.item())
        assert Fraction(down.item()) <= Fraction(value.item()) - Fraction(step.item())


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_a_perturbation_that_is_computed_in_the_type_of_the_data_stays_inside(p):
    """A poisoned sample is usually the rounded sum of sample and perturbation, which can leave the ball by rounding."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randn(50, 4, generator=generator) * 100
    epsilon = 1e-4
    stored = as_stored(perturbed(clean.double(), epsilon, p), clean.double(), torch.float32)
    directions = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    directions = epsilon * directions / torch.linalg.vector_norm(directions, ord=p, dim=1, keepdim=True)
    poisoned = (clean.double() + directions).float()
    assert stored.contains(poisoned)
    outside = torch.linalg.vector_norm(poisoned.double() - clean.double(), ord=p, dim=1) > epsilon
    assert bool(outside.any()), "nothing was rounded outward"
    if stored.ball is not None:
        moves = (poisoned.double() - clean.double()) / stored.ball.scale
        assert bool((torch.linalg.vector_norm(moves, ord=p, dim=1) <= 1).all())


def test_features_that_do_not_move_stay_points():
    clean = torch.full((1, 2), 0.1, dtype=torch.float64)
    stored = as_stored(perturbed(clean, torch.tensor([0.0, 0.5])), clean, torch.float32)
    assert (stored.width[0] > 0).tolist() == [False, True]
