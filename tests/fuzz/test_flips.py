"""A short run of the fuzz of label flips, and faults that it finds."""

from collections import Counter
from functools import partial

import pytest
import torch

from agt_lightning.domains.influence import recorded_head
from agt_lightning.domains.influence.sample_table import SampleTable
from tests.faults import Fault
from tests.fuzz.flips import violations

COUNT, TABLE = recorded_head.certified_flips, SampleTable.rows


def check(seeds):
    counts = Counter()
    found = [violation for seed in seeds for violation in violations(seed, counts)]
    assert not found, found[0]
    return counts


def test_no_certified_number_of_flips_changes_a_prediction():
    counts = check([1, 3, 5])
    assert counts["certified exactly"] > 10


def one_too_many(*arguments, **options):
    return COUNT(*arguments, **options) + 1


def each_step_of_its_own(self, features, targets, **options):
    """Identity by content, though transforms change it."""
    options["ids"] = None
    options["epoch"] = 0
    return TABLE(self, features, targets, **options)


def names_for_each_draw(self, features, targets, **options):
    """Every draw of a sample counts as another sample."""
    first = len(self._sample_of)
    options["ids"] = torch.arange(first, first + len(features))
    return TABLE(self, features, targets, **options)


def equal_is_equal(self, epoch, samples):
    return None


FAULTS = [
    Fault("a count that is one too high", partial(check, [1]), one_too_many, (recorded_head, "certified_flips")),
    Fault("no look at content", partial(check, [14]), each_step_of_its_own, (SampleTable, "rows")),
    Fault("a name for each draw", partial(check, [3]), names_for_each_draw, (SampleTable, "rows")),
    Fault("no look at equal content", partial(check, [0]), equal_is_equal, (SampleTable, "_equal_content")),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_faults_are_found(fault):
    fault.require_noticed("flips are certified")
