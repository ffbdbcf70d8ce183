"""Whole poisoned trainings that push outputs along the adjoint directions stay inside the bounds."""

import pytest

from agt_lightning import BoundedAdversary
from agt_lightning.errors import UncertifiableError
from tests.domains.adjoint.trainings import Case, attack

ADVERSARIES = [
    pytest.param("mse", BoundedAdversary(n=1, epsilon=0.02), id="mse-features"),
    pytest.param("mse", BoundedAdversary(n=1, epsilon=0.02, p=2), id="mse-features-2"),
    pytest.param("mse", BoundedAdversary(n=1, epsilon=0.05, p=1), id="mse-features-1"),
    pytest.param("mse", BoundedAdversary(n=2, nu=0.1), id="mse-labels"),
    pytest.param("mse", BoundedAdversary(n=2, nu=0.1, q=2), id="mse-labels-2"),
    pytest.param("mse", BoundedAdversary(n=2, epsilon=0.02, nu=0.05), id="mse-both"),
    pytest.param("bce", BoundedAdversary(n=1, nu=1, q=0), id="bce-flips"),
    pytest.param("bce", BoundedAdversary(n=2, epsilon=0.03), id="bce-features"),
    pytest.param("bce", BoundedAdversary(n=1, epsilon=0.05, p=1, nu=1, q=0), id="bce-both"),
    pytest.param("ce", BoundedAdversary(n=1, nu=1, q=0), id="ce-flips"),
    pytest.param("ce", BoundedAdversary(n=2, epsilon=0.03), id="ce-features"),
    pytest.param("ce", BoundedAdversary(n=1, epsilon=0.03, nu=1, q=0), id="ce-both"),
]

ROUNDING = 1 + 1e-9
"""Float64 rounding of the attacks' own trainings, relative to bounds that are far above it."""


@pytest.mark.thinned(5)
@pytest.mark.parametrize(("kind", "adversary"), ADVERSARIES)
def test_poisoned_trainings_stay_inside(kind, adversary):
    outcome = attack(Case(kind, adversary, rate=0.03, decay=0.05, falling=0.1, epochs=1), runs=16)
    assert max(outcome.outputs, outcome.along, outcome.distance) <= ROUNDING
    assert outcome.along > 0.1  # the attacks come near


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(11))
@pytest.mark.parametrize(("kind", "adversary"), ADVERSARIES)
def test_many_poisoned_trainings_stay_inside(kind, adversary, seed):
    case = Case(
        kind,
        adversary,
        hidden=(3, 4, 8)[seed % 3],
        rate=(0.02, 0.04, 0.08)[seed // 2 % 3],
        decay=(0.0, 0.1)[seed % 2],
        falling=(0.0, 0.2)[seed // 3 % 2],
        seed=seed,
        scale=(1.0, 2.0)[seed // 4 % 2],
        domains=(("ball", "adjoint"), ("box", "ball", "adjoint"))[seed % 2],
    )
    try:
        outcome = attack(case)
    except UncertifiableError as error:  # no claim, nothing to check
        assert "the bounds diverged" in str(error)  # noqa: PT017
        return
    assert max(outcome.outputs, outcome.along, outcome.distance) <= ROUNDING


def test_an_adversary_stronger_than_certified_leaves_the_bounds():
    """The check has teeth: one flip is certified, and two attack."""
    case = Case("bce", BoundedAdversary(n=1, nu=1, q=0), rate=0.03, epochs=1)
    assert attack(case, runs=16, stronger=BoundedAdversary(n=2, nu=1, q=0)).along > 1.2
