"""A short run of the fuzz of label flips, and faults that it finds."""

from collections import Counter

import pytest
import torch

from agt_lightning.domains.influence import recorded_head
from agt_lightning.domains.influence.recorder import HeadRecorder
from agt_lightning.domains.influence.sample_table import SampleTable
from tests.faults import Fault
from tests.fuzz.flips import violations

COUNT, TABLE, RESTORED = recorded_head.certified_flips, SampleTable.rows, HeadRecorder.restored


def check(seeds):
    counts = Counter()
    found = [violation for seed in seeds for violation in violations(seed, counts)]
    assert not found, found[0]
    return counts


def test_no_certified_number_of_flips_changes_a_prediction():
    counts = check(range(10))
    assert counts["certified exactly"] > 20


def one_too_many(*arguments, **options):
    return COUNT(*arguments, **options) + 1


def each_step_of_its_own(self, features, targets, **options):
    """Identity by content, though transforms change it."""
    options["ids"] = None
    options["epoch"] = 0
    return TABLE(self, features, targets, **options)


def without_problem(self, epoch, samples):
    return None


def momentum_forgotten(state):
    recorder = RESTORED(state)
    recorder._started = dict.fromkeys(recorder._started, False)
    return recorder
