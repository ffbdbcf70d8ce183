"""A number that tells tensors of different content apart, computed where they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_STEP = -7046029254386353131
"""2⁶⁴ divided by the golden ratio, as a signed number."""

_ROUNDS = ((30, -4658895280553007687), (27, -7723592293110705685))
"""Shifts and odd factors of the generator splitmix64 (Steele, Lea and Flood, 2014)."""


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A 64-bit mark of the bits of all tensors, their order and their types.

    Equal tensors have equal marks. A single element that changes always changes the mark, more of them but by a chance
    of about 2⁻⁶⁴.

    Example:
        >>> one = torch.tensor([1.0, 2.0])
        >>> fingerprint([one]) == fingerprint([one.clone()]), fingerprint([one]) == fingerprint([one.flip(0)])
        (True, False)
    """
    mark = 0
    for tensor in tensors:
        own = int(_mixed(_integers(tensor)).sum()) if tensor.numel() else 0
        mark = (mark * 31 + own + tensor.dtype.itemsize) % 2**64
    return mark


def row_fingerprints(tensors: Iterable[Tensor]) -> Tensor:
    """The same for each row of tensors (b, ...) together, int64 (b,)."""
    marks: Tensor | None = None
    for tensor in tensors:
        rows = _integers(tensor).reshape(len(tensor), -1)
        own = _mixed(rows).sum(dim=1)
        marks = own if marks is None else marks * 31 + own
    assert marks is not None
    return marks


def _integers(tensor: Tensor) -> Tensor:
    """The bits of each element as an integer."""
    if tensor.dtype == torch.bool or not tensor.is_floating_point():
        return tensor.detach().long()
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.dtype.itemsize]).long()


def _mixed(numbers: Tensor) -> Tensor:
    """Numbers that depend on value and place along the last axis, so that the sum tells order apart."""
    place = torch.arange(1, numbers.shape[-1] + 1, device=numbers.device) if numbers.ndim else numbers.new_ones(())
    mixed = numbers + place * _STEP
    for shift, factor in _ROUNDS:  # each round can be undone, so no difference is lost
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return mixed ^ _shifted(mixed, 31)


def _shifted(numbers: Tensor, places: int) -> Tensor:
    """Shifted right without regard to the sign."""
    return torch.bitwise_and(numbers >> places, 2 ** (64 - places) - 1)
