"""Layers of a multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


def perceptron(widths: Sequence[int], dtype: torch.dtype) -> nn.Sequential:
    """Return linear layers of the given widths, inputs and outputs included, with ReLU between them.

    They are initialized in the default type and then cast, so a seed gives the same network in both types.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(dtype)
