"""A digest of a state tells every difference in it, and none that the state does not have."""

import math

import pytest
import torch

from agt_lightning.digest import state_digest

STATE = {
    "steps": 3,
    "radius": 0.5,
    "name": "box",
    "digest": b"ab",
    "nobody": None,
    "flag": True,
    "list": [1, 2.0, ["a", "b"]],
    "box": {"w": torch.tensor([[1.0, 2.0]]), "n": torch.tensor(3), "mask": torch.tensor([True, False])},
}


def edited(**changes):
    return {**STATE, **changes}


OTHERS = {
    "int": edited(steps=4),
    "float for int": edited(steps=3.0),
    "bool for int": {"a": True},
    "int for bool": {"a": 1},
    "float": edited(radius=math.nextafter(0.5, 1)),
    "string": edited(name="Box"),
    "bytes": edited(digest=b"aB"),
    "string for bytes": edited(digest="ab"),
    "string for none": edited(nobody="None"),
    "flag": edited(flag=False),
    "order of a list": edited(list=[2.0, 1, ["a", "b"]]),
    "borders of strings": edited(list=[1, 2.0, ["ab", ""]]),
    "nesting": edited(list=[1, 2.0, "a", "b"]),
    "one value": edited(box={**STATE["box"], "w": torch.tensor([[1.0, 2.0000002]])}),
    "sign of zero": {"z": torch.zeros(1)},
    "other sign of zero": {"z": -torch.zeros(1)},
    "shape": edited(box={**STATE["box"], "w": torch.tensor([1.0, 2.0])}),
    "type": edited(box={**STATE["box"], "w": torch.tensor([[1.0, 2.0]]).double()}),
    "mask": edited(box={**STATE["box"], "mask": torch.tensor([True, True])}),
    "another key": {("x" if key == "name" else key): value for key, value in STATE.items()},
    "one less": {key: value for key, value in STATE.items() if key != "nobody"},
    "swapped values": edited(steps=STATE["radius"], radius=STATE["steps"]),
    "empty": {},
    "empty list": [],
    "nothing": None,
}


def test_all_states_have_digests_of_their_own():
    digests = [state_digest(state) for state in (STATE, *OTHERS.values())]
    assert len(set(digests)) == len(digests)


def test_order_of_keys_and_kind_of_sequence_do_not_count():
    turned = dict(reversed(STATE.items())) | {"list": (1, 2.0, ("a", "b"))}
    assert state_digest(turned) == state_digest(STATE)


def test_layout_in_memory_does_not_count():
    matrix = torch.arange(6.0).reshape(2, 3)
    assert state_digest(matrix.T.contiguous()) == state_digest(matrix.T)
    for strange in (
        torch.ones(1).expand(3),
        torch.ones(3).as_strided((1,), (0,)),
        torch.ones(3)[::3],
        torch.ones(6)[::2],
    ):
        assert state_digest(strange) == state_digest(torch.ones(len(strange)))
    assert state_digest(torch.empty(0, 3)) != state_digest(torch.empty(3, 0))


@pytest.mark.parametrize("value", [{1, 2}, object(), 1j, torch.float32], ids=lambda value: type(value).__name__)
def test_other_types_are_refused(value):
    with pytest.raises(TypeError, match="Expected tensors, numbers, strings"):
        state_digest({"a": [value]})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_do_not_count():
    assert state_digest({"w": torch.ones(3).cuda()}) == state_digest({"w": torch.ones(3)})
