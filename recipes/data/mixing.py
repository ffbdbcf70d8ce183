"""Batches that mix what a network has seen before with what is new and can be poisoned."""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from torch import Tensor


def mixed_batches(clean: Sequence[int], new: Sequence[int], batch_size: int, share: float) -> list[list[int]]:
    """Return batches with every new sample once, a fixed share of each batch, and clean ones in turn.

    Args:
        clean: positions of the clean samples.
        new: positions of the new samples; the last batch has as many as are left, and clean ones in proportion.
        batch_size: samples per batch.
        share: part of each batch that is new.

    Example:
        >>> mixed_batches([0, 1, 2, 3, 4, 5, 6, 7], [10, 11, 12, 13], 10, 0.3)
        [[10, 11, 12, 0, 1, 2, 3, 4, 5, 6], [13, 7, 0]]
    """
    size, others = round(batch_size * share), cycle(clean)
    parts = [list(new[start : start + size]) for start in range(0, len(new), size)]
    return [[*part, *islice(others, round(len(part) * (1 - share) / share))] for part in parts]


def is_new(batch: Any) -> Tensor:
    """Return the mask of new samples of a training batch, ``(batch,)``, which can be poisoned."""
    return batch[2]
