"""A short run of the fuzz of outputs under the adjoint, and faults that it finds."""

from collections import Counter
from functools import partial

import pytest
import torch

from agt_lightning.domains.adjoint.label_moves import ClassMoves
from agt_lightning.domains.adjoint.output_bounds import OneHiddenCombinations
from agt_lightning.domains.adjoint.step import StepAnalysis
from tests.faults import Fault
from tests.fuzz.outputs import violations

WORST, SUPPORT = StepAnalysis.of_the_worst, ClassMoves.support


def check(seeds):
    counts = Counter()
    found = [violation for seed in seeds for violation in violations(seed, counts)]
    assert not found, found[0]
    assert counts["certified trainings"] == len(seeds)


FAULTS = [
    Fault("half of the poison", partial(check, [3]), lambda *given: WORST(*given) / 2, (StepAnalysis, "of_the_worst")),
    Fault("half of a flip", partial(check, [13]), lambda *given: SUPPORT(*given) / 2, (ClassMoves, "support")),
    Fault(
        "no second order of an output",
        partial(check, [15]),
        lambda outputs, sign: torch.zeros(len(outputs.rows), dtype=torch.float64),
        (OneHiddenCombinations, "_second_order"),
    ),
]


def test_poisoned_runs_stay_inside():
    check([1])


@pytest.mark.parametrize(
    ("seed", "what"), [pytest.param(29, "a ball that the box keeps finite", id="limit of a written loss")]
)
def test_what_the_fuzzer_found(seed, what):
    check([seed])


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_faults_are_found(fault):
    fault.require_noticed("outside by")
