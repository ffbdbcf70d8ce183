"""Two recordings are the same if they compute the same, whatever their values are called."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning.capture import capture
from agt_lightning.capture.sameness import same_graph

X, Y = torch.randn(4, 3), torch.randn(4, 1)
NET = nn.Linear(3, 1)
NET.register_buffer("scale", torch.ones(()))
ONE, NEARLY = torch.tensor([1.0]), torch.tensor([1.0 + 2**-23])


def loss(x, y):
    return F.mse_loss(NET(x), y)


def named_otherwise(x, y):
    _ = (x + 1) * 2
    out = NET(x)
    return F.mse_loss(out, y)


def logs(x, y):
    _ = NET(x).sum()
    return loss(x, y)


OTHERS = {
    "another call": lambda x, y: F.l1_loss(NET(x), y),
    "another argument": lambda x, y: F.huber_loss(NET(x), y, delta=2.0),
    "one more call": lambda x, y: 2 * loss(x, y),
    "another order": lambda x, y: F.mse_loss(y, NET(x)),
    "another constant": lambda x, y: F.mse_loss(NET(x) * ONE, y),
    "another bit": lambda x, y: F.mse_loss(NET(x) * NEARLY, y),
    "a buffer": lambda x, y: F.mse_loss(NET(x) * NET.scale, y),
    "another number": lambda x, y: 3 * loss(x, y),
    "another sign of zero": lambda x, y: loss(x, y) + 0.0,
    "the other zero": lambda x, y: loss(x, y) + -0.0,
    "a parameter twice": lambda x, y: F.mse_loss(x @ NET.weight.T + NET.bias + NET.bias, y),
    "another leaf": lambda x, y: F.mse_loss(NET(x), x[:, :1]),
}


def graph_of(function):
    return capture(NET, lambda leaves: function(*leaves), [X, Y])


@pytest.mark.parametrize("other", [loss, named_otherwise, logs])
def test_names_and_dead_code_do_not_matter(other):
    assert same_graph(graph_of(loss), graph_of(other))


def test_everything_else_matters():
    graphs = [graph_of(loss), *(graph_of(other) for other in OTHERS.values())]
    for position, first in enumerate(graphs):
        assert same_graph(first, first)
        assert not any(same_graph(first, second) for second in graphs[:position])
