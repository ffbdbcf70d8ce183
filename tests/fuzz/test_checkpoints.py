"""A short run of the fuzz of checkpoints, and faults that it finds."""

from collections import Counter

import pytest

from agt_lightning import digest
from agt_lightning.lightning import resume
from tests.faults import Fault
from tests.fuzz import checkpoints
from tests.fuzz.checkpoints import violations

WHOLE = digest.state_digest


def check(seed=2):
    found = next(violations(seed, Counter()), None)
    assert found is None, found


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """Damage few places of a file, and every field."""
    monkeypatch.setattr(checkpoints, "FLIPS_OF_A_FILE", 12)
    monkeypatch.setattr(checkpoints, "CUTS_OF_A_FILE", 3)


@pytest.mark.parametrize("seed", [2, pytest.param(5, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.slow)])
def test_damaged_checkpoints_are_refused_or_whole(seed):
    check(seed)


def without_settings(state):
    return WHOLE({key: value for key, value in state.items() if key != "phases"})


def shapes_alone(state):
    if isinstance(state, dict):
        return WHOLE({key: shapes_alone(value) for key, value in state.items()})
    return WHOLE(list(state.shape)) if hasattr(state, "shape") else WHOLE(state)


FAULTS = [
    Fault("settings are not in the digest", check, without_settings, (resume, "state_digest")),
    Fault("values of tensors are not in the digest", check, shapes_alone, (resume, "state_digest")),
    Fault("the digest is not looked at", check, lambda saved: None, (resume, "_require_undamaged")),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_faults_are_found(fault):
    fault.require_noticed("seed 2")
