"""A replica shares the parameters and nothing else."""

import threading

import pytest
import torch
from torch import nn

from agt_lightning.capture.replica import replica
from agt_lightning.errors import CaptureError


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.tied = self.layer
        self.register_buffer("count", torch.zeros(()))
        self.history = [1]


def test_parameters_are_shared_and_state_is_not():
    module = Stateful()
    copied = replica(module)
    assert copied.layer.weight is module.layer.weight
    assert copied.tied is copied.layer
    copied.count += 1
    copied.history.append(2)
    copied.layer.extra = 3
    assert module.count == 0
    assert module.history == [1]
    assert not hasattr(module.layer, "extra")


def test_modes_are_copied():
    module = Stateful()
    module.layer.eval()
    copied = replica(module)
    assert copied.training
    assert not copied.layer.training
    copied.eval()
    assert module.training


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: [t], lambda t: {"last": t}, lambda t: {"all": [t]}])
def test_kept_results_of_autograd_can_be_copied(wrap):
    module = Stateful()
    module.kept = wrap(module.layer(torch.ones(1, 2)).sum())
    assert replica(module).layer.weight is module.layer.weight


def test_what_cannot_be_copied_is_named():
    module = Stateful()
    module.lock = threading.Lock()
    with pytest.raises(CaptureError, match="can be copied.*lock"):
        replica(module)
