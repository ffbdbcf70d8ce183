"""Tensors that code makes of sizes alone: Python may read them; whatever else reaches them makes them unknown."""

import pytest
import torch
from torch import nn

from agt_lightning.capture import capture
from agt_lightning.errors import CaptureError

X = torch.randn(3, 4)


def causal(size):
    return nn.Transformer.generate_square_subsequent_mask(size)


def branching(mask):
    """A function whose calls depend on whether a mask is causal."""

    def function(leaves):
        (x,) = leaves
        return x * 2 if bool((mask(x) == causal(4)).all()) else x + 1

    return function


def triangle(x):
    return torch.full((4, 4), float("-inf")).triu(1)


def zeros(x):
    return torch.zeros(4, 4)


@pytest.mark.parametrize(("mask", "op"), [(triangle, "aten.mul.Tensor"), (zeros, "aten.add.Tensor")])
def test_a_mask_that_is_made_of_sizes_is_known(mask, op):
    (call,) = capture(nn.Identity(), branching(mask), [X]).calls
    assert str(call.op) == op


def filled(x):
    mask = causal(4)
    mask.fill_(x.sum())
    return mask


def filled_by_a_view(x):
    mask = causal(4)
    mask[0].fill_(x.sum())
    return mask


def of_data(x):
    return causal(4) + x.sum()


@pytest.mark.parametrize("mask", [filled, filled_by_a_view, of_data])
def test_a_mask_that_data_reach_is_not(mask):
    with pytest.raises(CaptureError):
        capture(nn.Identity(), branching(mask), [X])
