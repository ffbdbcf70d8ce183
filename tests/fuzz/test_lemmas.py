"""A short run of the fuzz of single steps of the ball, and faults that it finds."""

from collections import Counter
from functools import partial

import pytest

from agt_lightning.domains.ball import radius
from tests.faults import Fault
from tests.fuzz.lemmas import violations

NEXT = radius.next_radius


def check(seeds):
    counts = Counter()
    found = [violation for seed in seeds for violation in violations(seed, counts)]
    assert not found, found[0]
    return counts


def test_no_attack_leaves_the_ball():
    counts = check([0, 1, 4])
    assert counts["within a tenth of the bound"] > 0


def nine_tenths(*arguments):
    return 0.9 * NEXT(*arguments)


def nobody_poisons(size, constants, rate, decay):
    return abs(1 - rate * decay) * size


FAULTS = [
    Fault("nine tenths of the radius", partial(check, [4]), nine_tenths, (radius, "next_radius")),
    Fault("no poison", partial(check, [0]), nobody_poisons, (radius, "next_radius")),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_faults_are_found(fault):
    fault.require_noticed("a step ends at")
