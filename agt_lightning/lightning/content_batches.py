"""Batches made by content: a sample's batch does not depend on which other samples there are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from typing_extensions import override

from agt_lightning.adversaries.base import check_count
from agt_lightning.capture.batch import FlatBatch

_TRIED = 4
"""Samples that are read twice, to see that they are the same both times."""

_COUNTED = 8
"""Samples from which on integers that count them are no chance."""


class SizedDataset(Protocol):
    """A map-style data set."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return a sample."""
        ...


class ContentBatches(Sampler[list[int]]):
    """A batch sampler that puts each sample into the batch that a hash of its content chooses.

    An inserted or deleted sample changes one batch of each epoch and leaves all others as they are, which
    ``UnboundedAdversary(..., edits="insert-delete")`` needs. There are as many batches in each epoch as said, always in
    the same order; their sizes differ, by the root of the mean size or so.

    The hash is no secret: an adversary can choose the batch of what it inserts, and n counts what it does to each.

    Args:
        dataset: a map-style data set. All of it is read once, to compute the hashes.
        batches: number of batches in an epoch; it must not be computed from the number of samples.
        content: returns what is hashed of a sample: tensors, arrays, numbers and strings, in any containers. None means
            all of it. If transforms draw random numbers, return what they start from. A number that a sample has by
            its place in the data set is no content: an insertion in front of it changes it.

    Raises:
        TypeError: if a sample has other entries.
        ValueError: if a batch would be empty, a sample is not the same when it is read again, or an integer in each
            sample is its index.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.arange(40.0)[:, None])
        >>> loader = DataLoader(data, batch_sampler=ContentBatches(data, batches=4))
        >>> sum(len(x) for x, in loader), len(loader)
        (40, 4)
        >>> less = TensorDataset(data.tensors[0][1:])                 # without the first sample
        >>> again = DataLoader(less, batch_sampler=ContentBatches(less, batches=4))
        >>> sum(torch.equal(x, y) for (x,), (y,) in zip(loader, again))
        3
    """

    def __init__(self, dataset: SizedDataset, batches: int, content: Callable[[Any], object] | None = None) -> None:
        check_count("batches", batches)
        if batches == 0:
            raise ValueError("Expected at least 1 batch, but got `batches=0`.")
        self._content = content
        numbers, integers = [], []
        for index in range(len(dataset)):
            entries = self._entries(dataset[index])
            numbers.append(_number(entries))
            integers.append(_integers(entries))
        for index, number in enumerate(numbers[:_TRIED]):
            if _number(self._entries(dataset[index])) != number:
                raise ValueError(
                    f"Expected the same content whenever a sample is read, but sample {index} was another one the "
                    "second time. If transforms draw random numbers, give `content=`, a function of what they start "
                    "from."
                )
        _require_no_index(integers)
        self.batches: list[list[int]] = [[] for _ in range(batches)]
        for index, number in enumerate(numbers):
            self.batches[number % batches].append(index)
        empty = [number for number, members in enumerate(self.batches) if not members]
        if empty:
            raise ValueError(
                f"Expected samples in each of {batches} batches, but {len(empty)} of them are empty. Use fewer batches."
            )

    def _entries(self, sample: object) -> FlatBatch:
        return FlatBatch.of(sample if self._content is None else self._content(sample))

    @override
    def __iter__(self) -> Iterator[list[int]]:
        return (list(members) for members in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _number(entries: FlatBatch) -> int:
    """Return a hash of all entries."""
    parts = [*map(_bytes_of_tensor, entries.tensors), *map(_bytes_of_other, entries.others)]
    # Lengths in front keep different contents apart, whatever bytes they have.
    whole = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return int.from_bytes(hashlib.blake2b(whole, digest_size=16).digest(), "little")


def _integers(entries: FlatBatch) -> tuple[int | None, ...]:
    """Return each entry that is one integer, and None for each other one."""
    tensors = (t.item() if t.numel() == 1 and not t.is_complex() else None for t in entries.tensors)
    values = (*tensors, *entries.others)
    return tuple(int(value) if type(value) is int or isinstance(value, np.integer) else None for value in values)


def _require_no_index(integers: Sequence[tuple[int | None, ...]]) -> None:
    """Require that no entry counts the samples.

    Args:
        integers: of each sample.

    Raises:
        ValueError: if one does.
    """
    for values in zip(*integers, strict=False):
        first = values[0]
        if len(values) < _COUNTED or first is None:
            continue
        if all(value == first + place for place, value in enumerate(values)):
            raise ValueError(
                "Expected content that does not depend on where a sample is in the data set, but an integer in each "
                "sample is its index, which an insertion in front of it changes. Give `content=`, a function that "
                "leaves it out."
            )


def _bytes_of_tensor(tensor: Tensor) -> bytes:
    value = tensor.detach().cpu().contiguous()
    header = f"{tuple(value.shape)} {value.dtype} ".encode()
    return header + value.reshape(-1).view(torch.uint8).numpy().tobytes()


def _bytes_of_other(entry: object) -> bytes:
    if isinstance(entry, np.ndarray) and not entry.dtype.hasobject:
        return f"{entry.shape} {entry.dtype} ".encode() + np.ascontiguousarray(entry).tobytes()
    if entry is None or isinstance(entry, bool | int | float | str | bytes | np.generic):
        return f"{type(entry).__name__} {entry!r}".encode()
    raise TypeError(
        f"Expected samples of tensors, arrays, numbers and strings, but got {type(entry).__name__}. Give `content=`, a "
        "function that returns such entries."
    )
