"""The shares of a parameter's elements that processes bound, each one of them with all samples at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from agt_lightning.distributed import ProcessGroup
from agt_lightning.gradients.all_gather import Gradients
from agt_lightning.gradients.base import FactoredGradient
from agt_lightning.interval import Interval

Bound = Callable[[FactoredGradient, FactoredGradient | None], Interval]
"""Bounds on a weighted sum from clean and poisoned gradients of all samples; each element on its own."""


def partitioned(processes: ProcessGroup, clean: Gradients, poisoned: Gradients, bound: Bound) -> dict[str, Interval]:
    """Apply a bound to every parameter, each process to its share of the elements; all get all of it.

    Args:
        processes: each with the gradients of all samples, see `all_gathered`.
        clean: by parameter name.
        poisoned: by parameter name; parameters that cannot be poisoned are left out.
        bound: what to compute.
    """
    pairs = {name: (gradient, poisoned.get(name)) for name, gradient in clean.items()}
    if processes.size == 1:
        return {name: bound(*pair) for name, pair in pairs.items()}
    axes = {name: divisible_axis(pair) for name, pair in pairs.items()}
    own: dict[str, Interval] = {}
    with processes.collective_errors():
        for name, pair in pairs.items():
            axis = axes[name]
            share = None if axis is None else slice_of(pair, axis, processes.rank, processes.size)
            if share is not None:
                own[name] = bound(*share)
    received = processes.gather(own)
    return {
        name: bound(*pair) if axes[name] is None else _assembled(received, name, axes[name])
        for name, pair in pairs.items()
    }


def _assembled(received: Sequence[Mapping[str, object]], name: str, axis: int | None) -> Interval:
    assert axis is not None
    shares = [message[name] for message in received if name in message]
    parts = [share for share in shares if isinstance(share, Interval)]
    lower = torch.cat([part.lower for part in parts], dim=axis)
    if all(part.is_point for part in parts):
        return Interval.point(lower)
    return Interval.trusted(lower, torch.cat([part.upper for part in parts], dim=axis))


Pair = tuple[FactoredGradient, FactoredGradient | None]
"""Clean and poisoned gradients of one parameter; None if nothing can be poisoned."""


def divisible_axis(pair: Pair) -> int | None:
    """The longest axis along which both can be divided; None if there is none.

    `ShardedGradient` ones cannot: every process must ask for the same blocks of them.

    Example:
        >>> import torch
        >>> from agt_lightning.gradients import Elementwise
        >>> from agt_lightning.interval import Interval
        >>> divisible_axis((Elementwise(Interval.point(torch.ones(5, 2, 3))), None))
        1
    """
    parts = [gradient for gradient in pair if gradient is not None]
    shape = parts[0].shape
    for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
        if all(part.narrow(axis, 0, 0) is not None for part in parts):
            return axis
    return None


def slice_of(pair: Pair, axis: int, number: int, count: int) -> Pair | None:
    """One of so many slices of about the same size; None if it is empty, as some are of few elements.

    Args:
        pair: gradients that can be divided along the axis.
        axis: of the parameter.
        number: of the slice, from 0.
        count: of all slices.
    """
    size = pair[0].shape[axis]
    start, stop = (size * position // count for position in (number, number + 1))
    clean = pair[0].narrow(axis, start, stop - start)
    if start == stop or clean is None:
        return None
    return clean, None if pair[1] is None else pair[1].narrow(axis, start, stop - start)
