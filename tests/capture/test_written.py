"""What is looked at while the user's code runs, and when it counts as written."""

import pytest
import torch
from torch import nn

from agt_lightning.capture.written import OUTSIDE, Watch, changes, written_by_data

scale = 1.0
"""A global variable of this file, which a module of it can read."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)


def test_what_is_added_counts_from_then_on():
    space = {"data": torch.ones(3), "rate": 0.1}
    watch = Watch(Net())
    watch.add(space)
    assert not changes(watch.before, watch.after())
    space["data"][0] = 2.0
    assert changes(watch.before, watch.after()) == {(OUTSIDE, "data")}
    assert set(written_by_data([watch.before], [watch.after()])) == {(OUTSIDE, "data")}


@pytest.mark.thinned(1)
@pytest.mark.parametrize("which", ["added", "global"])
def test_attributes_of_one_name_hide_no_change(which, monkeypatch):
    """The file of the module has the name of an attribute of the data module."""
    space = {"scale": 1.0}
    watch = Watch(Net())
    watch.add(space)
    if which == "added":
        space["scale"] = 2.0
    else:
        monkeypatch.setitem(globals(), "scale", 2.0)
    assert changes(watch.before, watch.after()) == {(OUTSIDE, "scale")}
