"""A fault counts as noticed only if its check fails, with the message of a check."""

import re
from types import SimpleNamespace

import pytest

from tests.faults import Fault, require_checks_pass

PIECE = SimpleNamespace(double=lambda x: 2 * x)


def check(double=None):
    """Of the argument, or else of the attribute."""
    value = (double or PIECE.double)(3)
    assert value == 6, f"{value} differs from 6"


def careless(double=None):
    (double or PIECE.double)(3)


def triple(x):
    return 3 * x


def crash(x):
    raise ZeroDivisionError


PLACES = [None, (PIECE, "double")]
PLACED = pytest.mark.parametrize("place", PLACES, ids=["argument", "attribute"])


@PLACED
def test_a_fault_is_noticed_and_taken_away_again(place):
    Fault("triple", check, triple, place).require_noticed("9 differs")
    check()


@PLACED
@pytest.mark.parametrize(("test", "broken"), [(careless, triple), (check, lambda x: x + x)], ids=["check", "fault"])
def test_a_check_that_passes_is_an_error(place, test, broken):
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        Fault("unnoticed", test, broken, place).require_noticed("differs")
    check()


@PLACED
def test_another_message_is_an_error(place):
    with pytest.raises(AssertionError, match=re.escape("Regex pattern did not match")):
        Fault("triple", check, triple, place).require_noticed("leaves its bounds")


@PLACED
def test_a_crash_is_not_taken_for_a_notice(place):
    with pytest.raises(ZeroDivisionError):
        Fault("crash", check, crash, place).require_noticed("differs")
    check()


def test_a_place_that_does_not_exist_is_an_error():
    with pytest.raises(AttributeError):
        Fault("triple", check, triple, (PIECE, "treble")).require_noticed("differs")


def test_each_check_runs_once_without_faults():
    calls = []

    def counted(piece=None):
        calls.append(piece)

    require_checks_pass([Fault(name, counted, name) for name in ("first", "second")])
    assert calls == [None]
