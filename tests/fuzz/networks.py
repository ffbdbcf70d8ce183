"""Random networks of random blocks, on numbers or on tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.fuzz.blocks import FAMILIES, Function, Shape

INPUTS: tuple[Shape, ...] = ((3,), (3,), (4,), (3, 2), (2, 4), (1, 3, 3), (2, 4, 4), (4, 2, 2), (1, 2, 3, 3))
"""Shapes of one sample."""

TOKENS = 5
"""Size of a vocabulary."""

LARGEST = 48
"""Largest number of values of a sample between two blocks."""


class Network(nn.Module):
    """Blocks, one after another, and a linear layer.

    Args:
        blocks: the parts.
        width: of the flattened result of the last block.
        outputs: number of outputs.
    """

    def __init__(self, blocks: list[nn.Module], width: int, outputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, (b, outputs)."""
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.last(x.flatten(1))
        return result


@dataclass(frozen=True)
class Plan:
    """How to build one network.

    Args:
        seed: of the choice of blocks and of all parameters.
        outputs: number of outputs.
        tokens: whether inputs are integers.
    """

    seed: int
    outputs: int
    tokens: bool = False

    @property
    def shape(self) -> Shape:
        """Shape of one sample."""
        return (3,) if self.tokens else random.Random(self.seed).choice(INPUTS)

    def build(self, dtype: torch.dtype) -> Network:
        """Return the network in evaluation mode, the same one each time."""
        draw = random.Random(self.seed)
        shape: Shape = draw.choice(INPUTS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self._built(draw, self.shape if self.tokens else shape)
        network = network.to(dtype).eval()
        for parameter in self._frozen(draw, network):
            parameter.requires_grad_(False)
        return network

    def _built(self, draw: random.Random, shape: Shape) -> Network:
        blocks: list[nn.Module] = [nn.Embedding(TOKENS, 3)] if self.tokens else []
        shape = (*shape, 3) if self.tokens else shape
        for _ in range(draw.choice([1, 2, 2, 3, 3, 4])):
            block, after = _drawn(draw, shape)
            if torch.Size(after).numel() > LARGEST:
                block, after = Function(torch.relu), shape
            blocks.append(block)
            shape = after
        return Network(blocks, torch.Size(shape).numel(), self.outputs)

    def _frozen(self, draw: random.Random, network: Network) -> list[nn.Parameter]:
        """Return the parameters of the first blocks, in one of five networks; or of one block in one of twenty."""
        share, cut = draw.random(), draw.randrange(len(network.blocks) + 1)
        if share < 0.2:
            return [p for block in list(network.blocks)[:cut] for p in block.parameters()]
        return list(network.blocks[cut - 1].parameters()) if share < 0.25 and cut else []


def _drawn(draw: random.Random, shape: Shape) -> tuple[nn.Module, Shape]:
    """Return a block that fits, and the shape behind it."""
    while True:
        block = draw.choice(draw.choice(FAMILIES))
        if len(shape) not in block.ranks:
            continue
        module = block.build(draw, shape)
        if module is None:
            continue
        try:
            with torch.no_grad():
                after = tuple(module.eval()(torch.rand(2, *shape)).shape)
        except (RuntimeError, IndexError, ValueError):
            continue  # such as a window that is larger than the image
        if after[0] == 2 and 2 <= len(after) <= 5 and 0 not in after:
            return module, after[1:]
