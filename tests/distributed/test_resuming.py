"""A resumed training has the bounds of an uninterrupted one, to the last bit, even after SIGKILL.

Both run on the same machine with one thread; nothing is promised across machines.
"""

import random
import time

import pytest
import torch

from agt_lightning import BoundedAdversary
from tests.distributed import resuming
from tests.distributed.pool import forkserver
from tests.distributed.test_same_bounds import assert_same_bits

pytestmark = pytest.mark.filterwarnings("ignore")

TRAININGS = {
    "box and ball": {},
    "momentum": {"momentum": 0.9},
    "influence": {
        "freeze": True,
        "momentum": 0.9,
        "adversary": BoundedAdversary(n=1, nu=0.1),
        "certification": {"domains": ["box", "influence"]},
    },
}
STEPS = {"end of an epoch": 6, "middle of an epoch": 8}


def assert_resumed(results, whole):
    assert_same_bits([*results, whole])
    assert all(result["steps"] == whole["steps"] for result in results)
    assert all(result["radius"] == whole["radius"] for result in results)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
def test_one_process(training, step, tmp_path):
    result = resuming.interrupted(step, str(tmp_path / "stopped.ckpt"), training)
    assert_resumed([result], resuming.run(**training))


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_two_processes(step, tmp_path, pool):
    training = TRAININGS["momentum"]
    results = pool.run(2, resuming.interrupted, step, str(tmp_path / "stopped.ckpt"), training)
    (whole, _) = pool.run(2, _run, training)
    assert_resumed(results, whole)


def _run(training):
    return resuming.run(**training)


BALLAST = 30 * 2**20
"""Bytes that make saving take about as long as training."""


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 20])
def test_killed_at_any_moment(kills, tmp_path):
    """Each run is killed at a random moment after its first checkpoint, and goes on from the last one."""
    context = forkserver()
    moments, killed = random.Random(kills), 0
    last = tmp_path / "last.ckpt"
    while killed < kills:
        worker = context.Process(target=resuming.saving_every_step, args=(str(tmp_path), BALLAST))
        worker.start()
        before = last.stat().st_mtime_ns if last.exists() else None
        while worker.is_alive() and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        worker.kill()
        worker.join()
        killed += worker.exitcode != 0
        checkpoint = torch.load(last, weights_only=True)
        assert checkpoint["agt_bounds"]["steps"] == checkpoint["global_step"]
        if (tmp_path / "result.pt").exists():  # it came to the end: begin again
            last.unlink()
            (tmp_path / "result.pt").unlink()
    worker = context.Process(target=resuming.saving_every_step, args=(str(tmp_path), BALLAST))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    whole = resuming.run(ballast=BALLAST, **resuming.ONE_EPOCH)
    assert_resumed([torch.load(tmp_path / "result.pt", weights_only=True)], whole)
