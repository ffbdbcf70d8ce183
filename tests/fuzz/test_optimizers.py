"""A short run of the fuzz of optimizers, and faults that it finds."""

import pytest

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.optimizers import AbstractSGD, adam
from tests.fuzz.optimizers import case, violations

CASES = range(150)


@pytest.mark.slow
def test_no_run_of_torch_leaves_its_boxes():
    assert not [str(violation) for seed in CASES for violation in violations(case(seed))]


class Exact(AbstractSGD):
    """Counts no rounding of the run."""

    def step(self, group, state, box, gradient, arithmetic=None):
        return super().step(group, state, box, gradient, Arithmetic(None, box.dtype))


def require_found(kind, counterpart=None, seeds=range(200)):
    """Raise unless the fuzz finds a violation."""
    drawn = (found for found in map(case, seeds) if found.kind.__name__ == kind)
    assert any(True for found in drawn for _ in violations(found, counterpart)), "Expected the fuzz to find the fault."


def test_a_rounding_that_is_not_counted_is_found():
    require_found("SGD", Exact())


def test_a_quotient_without_its_peak_is_found(monkeypatch):
    def without_peak(*arguments, **settings):
        *before, x, floor = arguments
        ends = (type(x).point(end) for end in (x.lower, x.upper))
        low, high = (quotient(*before, end, floor, **settings) for end in ends)
        return low.hull(high)

    quotient = adam.quotient
    monkeypatch.setattr(adam, "quotient", lambda *a, **s: without_peak(*a, **s) if len(a) == 7 else quotient(*a, **s))
    require_found("Adam")
