"""Rules broken on purpose: each must raise, or change the bounds that other tests compare."""

import pytest
import torch.distributed as dist

import agt_lightning.domains.box as box
import agt_lightning.engine.nominal_step as nominal
from agt_lightning.distributed import TorchProcessGroup
from tests.distributed.cases import Case, train
from tests.distributed.pool import FailedError
from tests.distributed.test_same_bounds import CASES, FEATURES, assert_close

UNEVEN = Case("mse", FEATURES, uneven=True)
MIRRORED = Case("mse", FEATURES, mirrored=True)


def _train_with(owner, name, replacement):
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        return train(CASES["mse"])
    finally:
        setattr(owner, name, original)


def assert_raises_everywhere(pool, function, message):
    with pytest.raises(FailedError) as failed:
        pool.run(2, function)
    assert all(error is not None and message in error[1] for error in failed.value.errors), failed.value


def _one_poisoned_sample_less_in_other_processes():
    """As if n were divided among processes."""
    halved = Case("mse", type(FEATURES)(n=FEATURES.n // 2, epsilon=FEATURES.epsilon, nu=FEATURES.nu))
    return train(halved)


def test_n_counts_the_whole_step(pool):
    """Own samples alone do not fit the weights of all; with a share of n in each process, the bounds are others."""
    alone = train(CASES["mse"])
    assert_raises_everywhere(pool, _own_samples_only, "need to match")
    with pytest.raises(AssertionError):
        assert_close(pool.run(2, _one_poisoned_sample_less_in_other_processes)[0], alone)


def _own_samples_only():
    return _train_with(box, "all_gathered", lambda processes, *groups: groups)


def _weights_without_the_number_of_processes():
    original = nominal.sample_weights
    return _train_with(nominal, "sample_weights", lambda *args: original(*args) * dist.get_world_size())


def test_weights_hold_the_number_of_processes(pool):
    assert_raises_everywhere(pool, _weights_without_the_number_of_processes, "What is certified is not what is trained")


def _another_order_in_one_process():
    original = TorchProcessGroup.gather

    def gather(self, message):
        received = original(self, message)
        return received[::-1] if self.rank == 1 and "weights" in message else received

    TorchProcessGroup.gather = gather
    try:
        return train(UNEVEN)
    finally:
        TorchProcessGroup.gather = original


def test_samples_are_in_one_order_everywhere(pool):
    """Weights in another order than gradients, in one process."""
    pool.run(3, train, UNEVEN)
    with pytest.raises(FailedError) as failed:
        pool.run(3, _another_order_in_one_process)
    assert all(error[0] == "UnsoundBoundError" for error in failed.value.errors)


def test_repeated_samples_are_refused(pool):
    assert_raises_everywhere(pool, _mirrored, "in the batches of several processes")


def _mirrored():
    return train(MIRRORED)


def test_without_that_rule_they_are_not(pool):
    pool.run(2, _mirrored_and_unnoticed)


def _mirrored_and_unnoticed():
    original = nominal.require_distinct
    nominal.require_distinct = lambda keys: None
    try:
        return train(MIRRORED)
    finally:
        nominal.require_distinct = original
