"""Batch entries that no graph follows can be passed on, but not read."""

from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from agt_lightning.capture.batch import flatten
from agt_lightning.capture.opaque import guarded
from agt_lightning.capture.recording import Recording
from agt_lightning.errors import CaptureError

X = torch.ones(2)
Pair = namedtuple("Pair", "x other")


class Meta:
    def __init__(self):
        self.x = X
        self.flag = False


@dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    other: object


def rebuilt(batch, whole_samples=False):
    leaves, rebuild = flatten(batch)
    return guarded(rebuild, whole_samples=whole_samples)(leaves)


def entry_of(batch):
    if isinstance(batch, Mapping):
        return batch["other"]
    return batch.other if hasattr(batch, "other") else batch[1]


@pytest.mark.parametrize("other", [3, 2.5, True, "name", b"bytes", None, ["a", "b"], torch.Size([2, 3])])
def test_numbers_and_strings_stay_where_no_run_can_change_them(other):
    for batch in ({"x": X, "other": other}, [X, other], Pair(X, other), Sample(X, other)):
        assert entry_of(rebuilt(batch)) == other


READS = {
    "attribute": lambda entry: entry.x,
    "length": len,
    "truth": bool,
    "iteration": list,
    "comparison": lambda entry: entry == 1,
    "reflected sum": lambda entry: 1 + entry,
    "item": lambda entry: entry[0],
    "membership": lambda entry: "bad" in entry,
    "type": lambda entry: isinstance(entry, Meta),
    "text": str,
    "format": lambda entry: f"{entry}",
    "key": lambda entry: {entry: 1},
    "attribute set": lambda entry: setattr(entry, "flag", True),
    "call": lambda entry: entry(),
    "number": float,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("other", [Meta(), np.ones(2), {1, 2}, np.float64(1)], ids=lambda other: type(other).__name__)
def test_other_objects_are_refused_by_name_when_they_are_read(other, read):
    entry = rebuilt({"x": X, "other": other})["other"]
    assert entry is not None
    with pytest.raises(CaptureError, match=r"test_opaque.py:\d+ .*batch\['other'\]`, .*Make it a tensor"):
        read(entry)


def test_reading_is_noted_even_if_the_error_is_caught():
    recording = Recording()
    entry = rebuilt([X, Meta()])[1]
    with recording.running(), pytest.raises(CaptureError):
        _ = entry.flag
    with pytest.raises(CaptureError, match=r"batch\[1\]"):
        recording.require_accepted()


@pytest.mark.parametrize("other", [3, 2.5, "name", True])
def test_whole_samples_are_replaced_with_their_numbers_and_strings(other):
    for batch in ({"x": X, "other": other}, [X, other], Pair(X, other), Sample(X, other)):
        with pytest.raises(CaptureError, match="belongs to samples that the adversary replaces"):
            _ = entry_of(rebuilt(batch, whole_samples=True)) == other


def test_the_length_of_a_list_is_the_number_of_samples():
    names = rebuilt({"x": X, "names": ["a", "b"]}, whole_samples=True)["names"]
    assert len(names) == 2
    with pytest.raises(CaptureError, match=r"batch\['names'\]\[0\]"):
        _ = "b" in names


def test_the_batch_itself_is_not_changed():
    meta, batch = Meta(), {"x": X}
    batch["other"] = meta
    rebuilt(batch)
    assert batch["other"] is meta


@pytest.mark.parametrize("rows", [[1.0, 2.0], [[1.0], [2.0]], [(1, 2), (3, 4)]])
def test_lists_with_numbers_of_each_sample_are_refused_by_name(rows):
    for batch in ({"x": X, "other": rows}, [X, rows], Pair(X, rows), Sample(X, rows)):
        entry = entry_of(rebuilt(batch))
        assert len(entry) == len(rows)
        recording = Recording()
        with recording.running(), pytest.raises(Exception, match=r"batch|infer"):
            torch.tensor(entry)
        assert "a list of numbers" in recording.refusals[0]


def test_lists_of_another_length_are_settings():
    assert rebuilt([X, [1.0, 2.0, 3.0]])[1] == [1.0, 2.0, 3.0]
