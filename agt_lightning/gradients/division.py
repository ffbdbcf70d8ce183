"""Dividing the elements of a parameter, all samples of each at hand."""

from agt_lightning.gradients.base import FactoredGradient

Pair = tuple[FactoredGradient, FactoredGradient | None]
"""Clean and poisoned gradients of one parameter; None if nothing can be poisoned."""


def divisible_axis(pair: Pair) -> int | None:
    """The longest axis along which both can be divided; None if there is none.

    `Spread` ones cannot: every process must ask for the same blocks of them.

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
