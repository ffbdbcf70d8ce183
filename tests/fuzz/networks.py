"""Random networks of random blocks, on numbers or on tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn

from tests.fuzz.blocks import FAMILIES, Block, Shape, same_shape_layer

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
        given: a block that the network has.
        tokens: whether inputs are integers; the given block is left out if it does not take their vectors.
        clear: whether there is nothing besides the given block and trained layers, so that bounds are nearly attained.
    """

    seed: int
    outputs: int
    given: Block
    tokens: bool = False
    clear: bool = False

    @property
    def shape(self) -> Shape:
        """Shape of one sample."""
        return (3,) if self.tokens else random.Random(self.seed).choice(_shapes_for(self.given))

    def build(self, dtype: torch.dtype) -> Network:
        """Return the network in evaluation mode, the same one each time."""
        draw = random.Random(self.seed + 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self._built(draw)
        network = network.to(dtype).eval()
        for parameter in self._frozen(draw, network):
            parameter.requires_grad_(False)
        return network

    def _built(self, draw: random.Random) -> Network:
        chain = Chain(draw, self.shape)
        if self.tokens:
            chain.add(nn.Embedding(TOKENS, 3, padding_idx=draw.choice([None, 0, TOKENS - 1])), (*self.shape, 3))
        others = 0 if self.clear else draw.choice([0, 1, 1, 2, 3])
        before = draw.randrange(others + 1)
        chain.draw(before)
        chain.add_layer(share=0.9 if self.clear else 0.5)
        chain.add_block(self.given)
        chain.add_layer(share=0.2)
        chain.draw(others - before)
        return Network(chain.blocks, torch.Size(chain.shape).numel(), self.outputs)

    def _frozen(self, draw: random.Random, network: Network) -> list[nn.Parameter]:
        """Return the parameters of the first blocks, in one of five networks; or of one block in one of twenty."""
        share, cut = draw.random(), draw.randrange(len(network.blocks) + 1)
        if self.clear:
            return []
        if share < 0.2:
            return [p for block in list(network.blocks)[:cut] for p in block.parameters()]
        return list(network.blocks[cut - 1].parameters()) if share < 0.25 and cut else []


@dataclass
class Chain:
    """Blocks one after another.

    Args:
        source: of chance.
        shape: of a sample behind the last block.
        blocks: so far.
    """

    source: random.Random
    shape: Shape
    blocks: list[nn.Module] = field(default_factory=list)

    def add(self, module: nn.Module, after: Shape) -> None:
        """Append a module, behind which samples have another shape."""
        self.blocks.append(module)
        self.shape = after

    def add_layer(self, share: float) -> None:
        """Append a trained layer, in a share of all cases; behind some of them, values are not negative."""
        if self.source.random() < share:
            self.add(same_shape_layer(self.source, self.shape), self.shape)
            if self.source.random() < 0.3:
                self.add(nn.ReLU(), self.shape)

    def add_block(self, block: Block) -> bool:
        """Append a block, and return whether it fits."""
        fitted = _fitted(block, self.source, self.shape)
        if fitted is not None and torch.Size(fitted[1]).numel() <= LARGEST:
            self.add(*fitted)
            return True
        return False

    def draw(self, count: int) -> None:
        """Append so many blocks that fit."""
        while count:
            count -= self.add_block(self.source.choice(self.source.choice(FAMILIES)))


@cache
def _shapes_for(block: Block) -> tuple[Shape, ...]:
    """Return the shapes of samples that a block takes."""
    with torch.random.fork_rng(devices=[]):  # the first call and later ones leave torch's generator alike
        return tuple(shape for shape in INPUTS if _fitted(block, random.Random(0), shape) is not None)


def _fitted(block: Block, draw: random.Random, shape: Shape) -> tuple[nn.Module, Shape] | None:
    """Return the module of a block for a shape, and the shape behind it; None if it does not fit."""
    module = block.build(draw, shape) if len(shape) in block.ranks else None
    if module is None:
        return None
    try:
        with torch.no_grad():
            after = tuple(module.eval()(torch.rand(2, *shape)).shape)
    except (RuntimeError, IndexError, ValueError):
        return None  # such as a window that is larger than the image
    return (module, after[1:]) if after[0] == 2 and 2 <= len(after) <= 5 and 0 not in after else None
