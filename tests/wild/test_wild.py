"""Each module of the collection under each adversary that makes sense for it: held under attack, or refused."""

import pytest

from tests.wild.collection import COLLECTION, cells
from tests.wild.matrix import complaint, outcome

MATRIX = [
    pytest.param(wild, threat, id=f"{wild.name}-{threat.name}", marks=() if wild.quick else pytest.mark.slow)
    for wild, threat in cells()
]


@pytest.mark.parametrize(("wild", "threat"), MATRIX)
def test_every_module_is_held_under_attack_or_refused_for_a_true_reason(wild, threat):
    wrong = complaint(wild, threat, outcome(wild, threat))
    assert wrong is None, wrong


def test_most_of_what_is_possible_works():
    assert len(COLLECTION) >= 60
    reasons = {name: [wild.refused.get(threat.name) for threat in wild.threats] for name, wild in COLLECTION.items()}
    possible = [found for found in reasons.values() if not all(reason and reason.impossible for reason in found)]
    working = [found for found in possible if None in found]
    assert len(working) >= 0.85 * len(possible)
