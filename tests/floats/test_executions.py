"""Poisoned trainings, executed in many ways, stay inside the bounds of one certified training, without tolerance."""

import warnings

import pytest
import torch

from agt_lightning.aggregation import rounded_sums
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.errors import AgtError
from agt_lightning.optimizers import base, sgd
from agt_lightning.rules import elementary, roundings
from tests.floats.configurations import configuration
from tests.floats.fuzz import certified, violations

QUICK = range(14)
SLOW = range(1000, 2000)
EXECUTIONS = 100


def found(seed, executions):
    """Return the violations of a configuration, and whether it was certified."""
    case = configuration(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            bounds = certified(case)
        except AgtError:  # bounds that diverged, and refusals
            return [], False
        return list(violations(case, bounds, executions)), True


@pytest.mark.slow
def test_no_execution_leaves_the_bounds(subtests):
    counts = []
    for seed in QUICK:
        with subtests.test(seed=seed):
            outside, is_certified = found(seed, 15)
            assert not outside
            counts.append(is_certified)
    assert sum(counts) >= len(QUICK) // 2, "most trainings were refused"


@pytest.mark.slow
@pytest.mark.parametrize("seed", SLOW)
def test_no_execution_leaves_the_bounds_of_many_trainings(seed):
    outside, _ = found(seed, EXECUTIONS)
    assert not outside


# --- planted faults ---------------------------------------------------------------------------------------------------


def run_is_exact(monkeypatch):
    monkeypatch.setattr(Arithmetic, "run_relative", lambda self, count: 0.0)


def sums_are_exact(monkeypatch):
    monkeypatch.setattr(rounded_sums.StepSums, "widened", lambda self, gradients: dict(gradients))


def updates_are_exact(monkeypatch):
    monkeypatch.setattr(base, "moved", lambda start, change, arithmetic: start - change)
    monkeypatch.setattr(sgd, "moved", lambda start, change, arithmetic: start - change)


def contractions_are_exact(monkeypatch):
    monkeypatch.setattr(roundings.Contraction, "forward", roundings.Exact.forward)
    monkeypatch.setattr(roundings.Contraction, "backward", roundings.Exact.backward)


def kernels_are_exact(monkeypatch):
    monkeypatch.setattr(elementary.KernelError, "widened", lambda self, value, x, arithmetic: value)


FAULTS = [run_is_exact, sums_are_exact, updates_are_exact, contractions_are_exact, kernels_are_exact]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_some_execution_or_by_the_training_itself(fault, monkeypatch):
    """Without poison bounds are as wide as rounding, so that a missing one shows at once."""
    fault(monkeypatch)
    assert any(_shows(seed) for seed in range(200, 260)), "no execution left the bounds"


def _shows(seed):
    case = configuration(seed)
    if case.dtype != torch.float32:
        return False
    still = type(case.adversary)(n=0)
    case = type(case)(**{**vars(case), "adversary": still, "engine": {"domains": ("box",)}})
    try:
        bounds = certified(case)
    except AgtError:
        return True
    return any(True for _ in violations(case, bounds, 10))
