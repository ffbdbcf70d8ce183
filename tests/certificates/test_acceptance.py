"""Criteria, their limits and their dates."""

import pytest

from agt_lightning import Acceptance
from agt_lightning.certificates.acceptance import criteria, dated, judged


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metric": "accuracy"}, ValueError, "but got none"),
        ({"metric": "accuracy", "at_least": 0.5, "at_most": 0.9}, ValueError, "but got both"),
        ({"metric": "", "at_least": 0.5}, ValueError, "it is empty"),
        ({"metric": 3, "at_least": 0.5}, TypeError, "name of a result, but got 3"),
        ({"metric": "accuracy", "at_least": float("nan")}, ValueError, "`at_least` to be finite"),
        ({"metric": "accuracy", "at_most": "0.5"}, TypeError, "`at_most` to be a number"),
    ],
)
@pytest.mark.thinned(1)
def test_criteria_that_mean_nothing_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Acceptance(**arguments)
    with pytest.raises(TypeError, match="`acceptance` to be an `Acceptance` or several"):
        criteria([0.9])


def test_limits_themselves_are_met():
    assert Acceptance("a", at_least=0.0).met_by({"a": 0.0}) is True
    assert Acceptance("a", at_least=0.5).met_by({"a": 0.4999}) is False
    assert Acceptance("a", at_most=0.0).met_by({"a": 0.0}) is True
    assert Acceptance("a", at_most=0.5).met_by({"a": float("inf")}) is False
    assert Acceptance("a", at_most=0.5).met_by({"a": float("nan")}) is False
    assert Acceptance("a", at_least=0.5).met_by({"b": 1.0}) is None


def test_another_limit_is_another_criterion_with_a_later_date():
    first = dated([Acceptance("a", at_least=0.5)], [], steps=0)
    same = dated([Acceptance("a", at_least=0.5)], first, steps=4)
    other = dated([Acceptance("a", at_least=0.4)], first, steps=4)
    assert (same[0]["set_after_step"], other[0]["set_after_step"]) == (0, 4)
    assert [each["set_before_the_first_step"] for each in judged([*same, *other], {"a": 0.45})] == [True, False]
    assert [each["met"] for each in judged([*same, *other], {"a": 0.45})] == [False, True]
