"""Batches of any structure give their tensors and take others in the same places."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from agt_lightning.capture import flatten

Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    name: str = "sample"


@dataclass
class Derived:
    x: Tensor
    twice: Tensor = field(init=False)

    def __post_init__(self):
        self.twice = 2 * self.x


ONE, TWO = torch.ones(2), torch.full((3,), 2.0)
STRUCTURES = {
    "tensor": (ONE, 1),
    "tuple": ((ONE, TWO), 2),
    "list": ([ONE, TWO], 2),
    "named tuple": (Pair(ONE, TWO), 2),
    "dict": ({"y": ONE, "x": TWO}, 2),
    "ordered dict": (OrderedDict(b=ONE, a=TWO), 2),
    "frozen dataclass": (Frozen(ONE), 1),
    "nested": ({"x": [ONE, (TWO, Pair(ONE, "name"))], "meta": None}, 3),
    "strings and numbers": ((ONE, ["a", "b"], 3, "c", None), 1),
    "empty": ((), 0),
}


@pytest.mark.parametrize(("batch", "count"), STRUCTURES.values(), ids=STRUCTURES)
def test_other_tensors_take_the_same_places(batch, count):
    leaves, rebuild = flatten(batch)
    assert len(leaves) == count
    doubled, _ = flatten(rebuild([2 * leaf for leaf in leaves]))
    assert all(torch.equal(second, 2 * first) for first, second in zip(leaves, doubled, strict=True))


@pytest.mark.parametrize(("batch", "count"), STRUCTURES.values(), ids=STRUCTURES)
def test_structure_and_type_are_kept(batch, count):
    leaves, rebuild = flatten(batch)
    again = rebuild(leaves)
    assert type(again) is type(batch)
    assert isinstance(batch, Tensor) or again == batch or count > 1  # tensors of several elements have no truth value


def test_non_tensors_stay():
    _, rebuild = flatten({"x": ONE, "meta": ("name", 3)})
    assert rebuild([TWO])["meta"] == ("name", 3)


def test_fields_that_are_not_arguments_are_derived_anew():
    leaves, rebuild = flatten(Derived(ONE))
    assert len(leaves) == 1
    assert torch.equal(rebuild([TWO]).twice, 2 * TWO)


def test_other_mappings_become_dicts():
    leaves, rebuild = flatten(UserDict(x=ONE))
    assert len(leaves) == 1
    assert torch.equal(rebuild([TWO])["x"], TWO)


def test_the_batch_itself_is_not_changed():
    batch = {"x": ONE, "y": [TWO]}
    leaves, rebuild = flatten(batch)
    rebuild([torch.zeros(2), torch.zeros(3)])
    assert batch["x"] is ONE
    assert batch["y"][0] is TWO
