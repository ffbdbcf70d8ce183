"""Messages arrive as they were sent."""

import pytest
import torch

from agt_lightning.distributed.message import packed, unpacked
from agt_lightning.interval import Interval

CPU = torch.device("cpu")
TENSORS = {
    "double": torch.randn(3, 2, dtype=torch.float64),
    "float": torch.randn(5),
    "half": torch.randn(3).half(),
    "integers": torch.arange(7),
    "boolean": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 4),
    "number": torch.tensor(2.5),
    "not contiguous": torch.randn(4, 3).T,
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_tensors_come_back(tensor):
    back = unpacked(packed({"note": "äöü", "tensor": tensor, "again": tensor}, CPU), CPU)
    assert back["note"] == "äöü"
    assert list(back) == ["note", "tensor", "again"]
    assert back["tensor"].dtype == tensor.dtype
    assert torch.equal(back["tensor"], tensor)


@pytest.mark.parametrize("point", [True, False])
@pytest.mark.parametrize("nonnegative", [True, False])
def test_intervals_come_back_with_what_is_known_of_them(point, nonnegative):
    lower = torch.rand(3)
    interval = Interval(lower, lower if point else lower + 1, nonnegative=nonnegative)
    back = unpacked(packed({"box": interval}, CPU), CPU)["box"]
    assert (back.is_point, back.nonnegative) == (point, nonnegative)
    assert torch.equal(back.lower, interval.lower)
    assert torch.equal(back.upper, interval.upper)


def test_a_tensor_that_is_used_twice_is_sent_once():
    large = torch.randn(10_000)
    assert len(packed({"a": large, "b": large, "c": Interval.point(large)}, CPU)) < 1.1 * large.nbytes


def test_an_empty_message():
    assert unpacked(packed({}, CPU), CPU) == {}
