"""Small random data, by the name of the entry: `x...` are features, `y...` labels, all others stay."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

SIZE = 12

Entry = Callable[[Generator], Tensor]


def rows(**entries: Entry) -> dict[str, Tensor]:
    """Return a batch of twelve samples, drawn entry by entry."""
    generator = torch.Generator().manual_seed(7)
    return {name: draw(generator) for name, draw in entries.items()}


def floats(*shape: int, scale: float = 1.0) -> Entry:
    return lambda generator: scale * torch.randn(SIZE, *shape, generator=generator)


def unit(*shape: int) -> Entry:
    """Numbers between zero and one, as pixels are."""
    return lambda generator: torch.rand(SIZE, *shape, generator=generator)


def classes(count: int, *shape: int) -> Entry:
    return lambda generator: torch.randint(0, count, (SIZE, *shape), generator=generator)


def bits(*shape: int) -> Entry:
    """Zeros and ones in floating point, as binary cross entropy wants them."""
    return lambda generator: torch.randint(0, 2, (SIZE, *shape), generator=generator).float()


def signs(*shape: int) -> Entry:
    """Ones and minus ones."""
    return lambda generator: 2 * torch.randint(0, 2, (SIZE, *shape), generator=generator).float() - 1


def counts(*shape: int) -> Entry:
    return lambda generator: torch.randint(0, 5, (SIZE, *shape), generator=generator).float()


def lengths(most: int) -> Entry:
    """Masks of the first few positions: one to all of them."""

    def draw(generator: Generator) -> Tensor:
        ends = torch.randint(1, most + 1, (SIZE, 1), generator=generator)
        return (torch.arange(most) < ends).long()

    return draw


def tags(count: int, length: int) -> Entry:
    """Classes of tokens, a few of which are ignored by the usual -100."""

    def draw(generator: Generator) -> Tensor:
        labels = torch.randint(0, count, (SIZE, length), generator=generator)
        return torch.where(torch.rand(SIZE, length, generator=generator) < 0.2, -100, labels)

    return draw
