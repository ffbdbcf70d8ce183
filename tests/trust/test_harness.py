"""The harness finds what it is there to find, and nothing else."""

import pytest
import torch

from agt_lightning import BoundedAdversary, ParameterBounds
from agt_lightning.interval import Interval
from tests.trust.harness import Held, held, measured, outcome, parameters, plain, poisoned_runs, refused
from tests.trust.modules import FEATURES, FLIPS, LABELS, Classifier, Regressor, classification, regression, variant

HONEST = {
    "labels": regression(),
    "features": regression(adversary=FEATURES),
    "both": regression(adversary=BoundedAdversary(n=2, epsilon=0.05, nu=0.2)),
    "hidden": regression(variant(Regressor, hidden=4), FEATURES),
    "flips": classification(),
    "classes": classification(adversary=FEATURES),
    "hidden classes": classification(variant(Classifier, hidden=4), FLIPS),
}


@pytest.mark.parametrize("case", HONEST.values(), ids=HONEST)
def test_ordinary_trainings_hold(case):
    held(case)


ONE_STEP = {"max_steps": 1}
"""After one step of a linear model the bounds on single coordinates are attained."""


@pytest.mark.parametrize("name", ["labels", "features", "flips"])
def test_bounds_of_half_their_width_are_left(name):
    case = HONEST[name].but(options=ONE_STEP)
    result = outcome(case)
    assert isinstance(result, Held)
    clean = plain(case)
    half = {}
    for name, interval in result.certified.bounds.items():
        low, high = clean[name] - interval.lower, interval.upper - clean[name]
        half[name] = Interval(clean[name] - low / 2, clean[name] + high / 2)
    assert measured(ParameterBounds(half), clean, poisoned_runs(case))["outside"] > 0


@pytest.mark.parametrize(
    ("weaker", "stronger"),
    [(BoundedAdversary(n=1, epsilon=0.03), FEATURES), (BoundedAdversary(n=1, nu=1.0), LABELS)],
)
def test_a_stronger_adversary_leaves_the_bounds(weaker, stronger):
    result = outcome(regression(adversary=weaker, options=ONE_STEP))
    assert isinstance(result, Held)
    case = regression(adversary=stronger, options=ONE_STEP)
    assert measured(result.certified.bounds, plain(case), poisoned_runs(case))["outside"] > 1e-4


def test_an_attack_beyond_the_limits_is_noticed():
    case = regression()
    with pytest.raises(AssertionError, match="too far"):
        plain(case, lambda epoch, index, rows: rows | {"y": rows["y"] + 6 * (torch.arange(4) == 0)[:, None]})
    with pytest.raises(AssertionError, match="too many"):
        plain(case, lambda epoch, index, rows: rows | {"y": rows["y"] + 1})
    with pytest.raises(AssertionError, match="moves x"):
        plain(case, lambda epoch, index, rows: rows | {"x": rows["x"] + 1})


def test_a_vacuous_attack_is_noticed():
    with pytest.raises(AssertionError, match="vacuous"):
        held(regression(attacks=[lambda epoch, index, rows: rows]))


def test_a_refusal_needs_its_reason():
    case = regression(variant(Regressor, automatic_optimization=False))
    refused(case, "automatic_optimization")
    with pytest.raises(AssertionError, match="another reason"):
        refused(case, "something else")


def test_a_plain_training_is_repeatable():
    case = regression()
    first, second = plain(case), plain(case)
    assert all(torch.equal(first[name], second[name]) for name in parameters(case.module()))
