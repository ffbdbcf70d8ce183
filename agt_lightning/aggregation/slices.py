"""Slices of a parameter, each in a thread of its own: elements do not depend on each other."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from agt_lightning.gradients import FactoredGradient, divisible_axis, slice_of

Sums = Callable[[FactoredGradient, FactoredGradient], tuple[Tensor, Tensor]]
"""What is computed of clean and poisoned gradients: two tensors of the parameter's shape."""

_LEAST = 2**20
"""Gains from which on starting threads pays: they take a few milliseconds on one core."""


def in_slices(sums: Sums, clean: FactoredGradient, poisoned: FactoredGradient, threads: int) -> tuple[Tensor, Tensor]:
    """Compute sums of every element, slices of the parameter side by side.

    Args:
        sums: each element on its own.
        clean: bounds of all samples.
        poisoned: bounds of the poisonable samples.
        threads: how many; each computes on one core.

    Example:
        >>> from agt_lightning.gradients import Elementwise
        >>> from agt_lightning.interval import Interval
        >>> gradient = Elementwise(Interval.point(torch.ones(2**10, 2**10)))
        >>> up, down = in_slices(lambda a, b: (torch.ones(a.shape), torch.zeros(b.shape)), gradient, gradient, 2)
        >>> up.shape, float(up.sum())
        (torch.Size([1024]), 1024.0)
    """
    axis = divisible_axis((clean, poisoned))
    if threads == 1 or axis is None or clean.elements * poisoned.samples < _LEAST:
        return sums(clean, poisoned)
    numbers = range(min(threads, clean.shape[axis]))

    def slice_sums(number: int) -> tuple[Tensor, Tensor]:
        part = slice_of((clean, poisoned), axis, number, len(numbers))
        assert part is not None
        assert part[1] is not None
        return sums(part[0], part[1])

    with _one_core_each(), ThreadPoolExecutor(len(numbers)) as pool:
        found = list(pool.map(slice_sums, numbers))
    up, down = (torch.cat(slices, dim=axis) for slices in zip(*found, strict=True))
    return up, down


@contextmanager
def _one_core_each() -> Iterator[None]:
    """Torch's operations take one thread inside; new threads begin with the number that is set."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
