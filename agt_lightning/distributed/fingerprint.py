"""Fingerprints: integers that differ if tensors do, computed on the tensors' own device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_STEP = -7046029254386353131
"""2⁶⁴ divided by the golden ratio, as a signed number."""

_ROUNDS = ((30, -4658895280553007687), (27, -7723592293110705685))
"""Shifts and odd factors of the generator splitmix64 (Steele, Lea and Flood, 2014)."""


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """Return a 64-bit fingerprint of the bits of all tensors, their order and their types.

    Equal tensors have equal fingerprints. A change of one element always changes the fingerprint; a change of several
    goes unnoticed with probability about 2⁻⁶⁴.

    Example:
        >>> one = torch.tensor([1.0, 2.0])
        >>> fingerprint([one]) == fingerprint([one.clone()]), fingerprint([one]) == fingerprint([one.flip(0)])
        (True, False)
    """
    combined = 0
    for tensor in tensors:
        mixed = int(_mixed(_integers(tensor)).sum()) if tensor.numel() else 0
        combined = (combined * 31 + mixed + tensor.dtype.itemsize) % 2**64
    return combined


def row_fingerprints(tensors: Iterable[Tensor]) -> Tensor:
    """Return a fingerprint of each sample, over tensors (b, ...) with the samples along the first axis; int64 (b,)."""
    combined: Tensor | None = None
    for tensor in tensors:
        mixed = _mixed(_integers(tensor).reshape(len(tensor), -1)).sum(dim=1)
        combined = mixed if combined is None else combined * 31 + mixed
    assert combined is not None
    return combined


def _integers(tensor: Tensor) -> Tensor:
    """Return the bits of each element as an integer."""
    if tensor.dtype == torch.bool or not tensor.is_floating_point():
        return tensor.detach().long()
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.dtype.itemsize]).long()


def _mixed(numbers: Tensor) -> Tensor:
    """Return integers that depend on value and position along the last axis, so that their sum depends on the order."""
    place = torch.arange(1, numbers.shape[-1] + 1, device=numbers.device) if numbers.ndim else numbers.new_ones(())
    mixed = numbers + place * _STEP
    for shift, factor in _ROUNDS:  # each round can be undone, so no difference is lost
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return mixed ^ _shifted(mixed, 31)


def _shifted(numbers: Tensor, places: int) -> Tensor:
    """Shift right, the sign bit like any other."""
    return torch.bitwise_and(numbers >> places, 2 ** (64 - places) - 1)
