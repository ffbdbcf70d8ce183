"""Bounds that are the same memory are widened once, and all others as each for itself."""

import torch

from agt_lightning.arithmetic.floating_point import Arithmetic, SharingArithmetic
from agt_lightning.interval import Interval

SINGLE = (torch.float32, torch.float64)


def _same(found: Interval, expected: Interval) -> bool:
    return torch.equal(found.lower, expected.lower) and torch.equal(found.upper, expected.upper)


def test_the_same_memory_is_widened_once() -> None:
    sharing, value = SharingArithmetic(*SINGLE), Interval.point(torch.randn(4, 3).double())
    flat = sharing.outward(value, 5)
    other = sharing.outward(value.rearranged(lambda bound: bound[:, None]), 5)
    assert other.shape == (4, 1, 3)
    assert other.lower.data_ptr() == flat.lower.data_ptr()
    assert _same(flat, Arithmetic(*SINGLE).outward(value, 5))


def test_other_values_roundings_and_facts_are_told_apart() -> None:
    sharing, plain = SharingArithmetic(*SINGLE), Arithmetic(*SINGLE)
    bounds = torch.rand(4, 4).double()
    values = [
        Interval.point(bounds),
        Interval.point(bounds.T),
        Interval.point(bounds[:2]),
        Interval.trusted(bounds, bounds + 1),
        Interval.point(bounds, nonnegative=True),
    ]
    for value in values:
        for roundings in (1, 10**6):
            found = sharing.outward(value, roundings)
            assert _same(found, plain.outward(value, roundings))
            assert found.nonnegative == value.nonnegative


def test_memory_that_was_freed_is_not_mistaken() -> None:
    sharing, plain = SharingArithmetic(*SINGLE), Arithmetic(*SINGLE)
    for _ in range(20):
        value = Interval.point(torch.randn(100, 100).double())
        assert _same(sharing.outward(value, 3), plain.outward(value, 3))
