"""Collectives through the memory of a GPU: a group of one process with NCCL."""

import pytest
import torch
import torch.distributed as dist

from agt_lightning.distributed import TorchProcessGroup
from agt_lightning.interval import Interval

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield TorchProcessGroup(DEVICE)
    dist.destroy_process_group()


def test_messages_and_sums_arrive_on_the_device(group):
    values = torch.arange(3000.0, dtype=torch.float64, device=DEVICE)
    (received,) = group.gather({"box": Interval(values, values + 1), "host": torch.ones(2), "note": "hello"})
    assert received["note"] == "hello"
    assert received["host"].device == DEVICE
    assert torch.equal(received["box"].upper, values + 1)
    sums = group.sum({"values": values, "counts": torch.ones(2, dtype=torch.int64, device=DEVICE)})
    assert torch.equal(sums["values"], values)
    assert sums["counts"].tolist() == [1, 1]


def test_tensors_of_both_devices_have_fingerprints(group):
    group.require_same([torch.ones(3, device=DEVICE), torch.tensor(0.5, dtype=torch.float64)], "tensors")
    assert group.any(True)
    assert group.union(["a", "b"]) == ["a", "b"]
