"""Split the elements of a parameter among processes or threads; each of them has all samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from agt_lightning.distributed import ProcessGroup
from agt_lightning.gradients.all_gather import Gradients
from agt_lightning.gradients.base import FactoredGradient
from agt_lightning.interval import Interval

Bound = Callable[[FactoredGradient, FactoredGradient | None], Interval]
"""Maps clean and poisoned gradients of all samples to bounds on a weighted sum, element by element."""


def partitioned(processes: ProcessGroup, clean: Gradients, poisoned: Gradients, bound: Bound) -> dict[str, Interval]:
    """Bound every parameter, with its elements split among the processes; all of them get all bounds.

    Args:
        processes: processes that have the gradients of all samples, see `all_gathered`.
        clean: gradients by parameter name.
        poisoned: gradients by parameter name, without parameters that cannot be poisoned.
        bound: bounds the sum of one parameter's gradients.

    Returns:
        Bounds by parameter name.
    """
    pairs = {name: (gradient, poisoned.get(name)) for name, gradient in clean.items()}
    if processes.size == 1:
        return {name: bound(*pair) for name, pair in pairs.items()}
    axes = {name: divisible_axis(pair) for name, pair in pairs.items()}
    local: dict[str, Interval] = {}
    with processes.collective_errors():
        for name, pair in pairs.items():
            axis = axes[name]
            share = None if axis is None else slice_of(pair, axis, processes.rank, processes.size)
            if share is not None:
                local[name] = bound(*share)
    received = processes.gather(local)
    return {
        name: bound(*pair) if axes[name] is None else _assembled(received, name, axes[name])
        for name, pair in pairs.items()
    }


def _assembled(received: Sequence[Mapping[str, object]], name: str, axis: int | None) -> Interval:
    assert axis is not None
    shares = [message[name] for message in received if name in message]
    return Interval.cat([share for share in shares if isinstance(share, Interval)], dim=axis)


Pair = tuple[FactoredGradient, FactoredGradient | None]
"""Clean and poisoned gradients of one parameter; the latter are None if no sample of it can be poisoned."""


def divisible_axis(pair: Pair) -> int | None:
    """Return the longest axis along which both gradients can be divided; None if there is none.

    A `ShardedGradient` cannot be divided, since every process must request the same blocks of it.

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
    """Return one of ``count`` slices of about equal size; None if it is empty, as happens with few elements.

    Args:
        pair: gradients that can be divided along the axis.
        axis: axis of the parameter.
        number: which slice, from 0.
        count: number of slices.
    """
    size = pair[0].shape[axis]
    start, stop = (size * position // count for position in (number, number + 1))
    clean = pair[0].narrow(axis, start, stop - start)
    if start == stop or clean is None:
        return None
    return clean, None if pair[1] is None else pair[1].narrow(axis, start, stop - start)
