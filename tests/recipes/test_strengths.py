import pytest

from agt_lightning import BoundedAdversary, UnboundedAdversary
from recipes.strengths import describe, label, varying_setting


def test_description_names_what_was_chosen():
    assert describe(BoundedAdversary(n=200, epsilon=0.01)) == "n = 200, ε = 0.01"
    assert describe(BoundedAdversary(n=5, nu=1, q=0)) == "n = 5, ν = 1, q = 0"
    assert describe(UnboundedAdversary(n=3, kappa=0.1)).startswith("n = 3, κ = 0.1")


def test_description_can_leave_one_setting_out():
    assert describe(BoundedAdversary(n=200, epsilon=0.01), without="n") == "ε = 0.01"


def test_varying_setting_is_found():
    assert varying_setting([BoundedAdversary(n=n, epsilon=0.1) for n in (1, 2)]) == "n"
    assert varying_setting([BoundedAdversary(n=1, epsilon=e) for e in (0.1, 0.2)]) == "epsilon"
    assert varying_setting([BoundedAdversary(n=1)]) == "n"


@pytest.mark.parametrize(
    "adversaries",
    [
        [BoundedAdversary(n=1, epsilon=0.1), BoundedAdversary(n=2, epsilon=0.2)],
        [BoundedAdversary(n=1), UnboundedAdversary(n=2, kappa=0.1)],
    ],
)
def test_adversaries_that_differ_in_more_are_refused(adversaries):
    with pytest.raises(ValueError, match="differ in one setting"):
        varying_setting(adversaries)


def test_label_shows_one_setting():
    assert label(BoundedAdversary(n=1, epsilon=0.5), "epsilon") == "ε = 0.5"
