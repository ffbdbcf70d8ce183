"""Gradients of consecutive samples, collected part by part in tensors with the samples along the last axis in memory.

A part that has just been computed is in the cache, so it is transposed there, once; sums over samples then read memory
in order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.gradients.base import FactoredGradient, write_transposed
from agt_lightning.gradients.buffers import Buffers
from agt_lightning.gradients.composite import Stacked
from agt_lightning.gradients.elementwise import Elementwise
from agt_lightning.gradients.outer_product import OuterProduct
from agt_lightning.interval import Interval
from agt_lightning.memory import place_of

_Parts = dict[str, "list[FactoredGradient | _Open]"]


class CollectedGradients:
    """The gradients of both passes over some samples, to which those of the next samples are added.

    Tensors that several gradients read are stored once. Rows of one tensor, such as frozen values, are not copied.

    Args:
        samples: number of all samples.
        poisonable: number of those that can be poisoned.
        buffers: memory for them.

    Example:
        >>> collected = CollectedGradients(samples=3, poisonable=0, buffers=Buffers())
        >>> for rows in (torch.ones(2, 4), torch.zeros(1, 4)):
        ...     collected.add({"bias": Elementwise(Interval.point(rows))}, {})
        >>> clean, poisoned = collected.result()
        >>> clean["bias"].values.lower[:, 0], poisoned
        (tensor([1., 1., 0.]), {})
    """

    def __init__(self, samples: int, poisonable: int, buffers: Buffers) -> None:
        self._samples = (samples, poisonable)
        self._buffers = buffers
        self._parts: tuple[_Parts, _Parts] = ({}, {})

    def add(self, clean: Mapping[str, FactoredGradient], poisoned: Mapping[str, FactoredGradient]) -> None:
        """Add the gradients of the samples that follow, by parameter name.

        Args:
            clean: for the data as it is.
            poisoned: those of poisonable samples; empty if there are none among these samples.
        """
        written = _Written(self._buffers)
        for gradients, parts, samples in zip((clean, poisoned), self._parts, self._samples, strict=True):
            for name, gradient in gradients.items():
                _add(gradient, parts.setdefault(name, []), samples, written)

    def result(self) -> tuple[dict[str, FactoredGradient], dict[str, FactoredGradient]]:
        """Return the gradients of all samples by parameter name: for the data as it is, and poisoned."""
        clean, poisoned = ({name: _joined(each) for name, each in parts.items()} for parts in self._parts)
        return clean, poisoned


def _add(gradient: FactoredGradient, parts: list[FactoredGradient | _Open], samples: int, written: _Written) -> None:
    """Add the gradient of some samples to those before; one with many numbers per sample is kept as it is."""
    if not isinstance(gradient, OuterProduct | Elementwise) or gradient.positions > 1:
        parts.append(gradient)
        return
    last = parts[-1] if parts else None
    if not isinstance(last, _Open) or not last.continues(gradient):
        last = _Open(type(gradient), samples - sum(part.samples for part in parts))
        parts.append(last)
    last.append(gradient, written)


def _joined(parts: Sequence[FactoredGradient | _Open]) -> FactoredGradient:
    closed = [part.gradient() if isinstance(part, _Open) else part for part in parts]
    return closed[0] if len(closed) == 1 else Stacked(closed)


class _Open:
    """A gradient to which samples are still added.

    Args:
        kind: its class, which is made of its leaves.
        samples: number of samples that it can hold.
    """

    def __init__(self, kind: type[OuterProduct | Elementwise], samples: int) -> None:
        self.kind, self.capacity, self.samples = kind, samples, 0
        self._form: list[tuple[torch.Size, torch.dtype]] = []
        self._ends: list[tuple[_Store, _Store]] = []
        self._nonnegative: list[bool] = []

    def continues(self, gradient: FactoredGradient) -> bool:
        """Return whether the gradient's samples can be added."""
        return type(gradient) is self.kind and [_form(leaf) for leaf in _intervals(gradient)] == self._form

    def append(self, gradient: FactoredGradient, written: _Written) -> None:
        """Add samples.

        Args:
            gradient: theirs.
            written: what gradients of the same samples have added already.
        """
        leaves = _intervals(gradient)
        before: Sequence[tuple[_Store | None, _Store | None]] = self._ends or [(None, None)] * len(leaves)
        self._form = [_form(leaf) for leaf in leaves]
        self._ends = [
            (written.store(leaf.lower, lower, self.capacity), written.store(leaf.upper, upper, self.capacity))
            for leaf, (lower, upper) in zip(leaves, before, strict=True)
        ]
        known = self._nonnegative or [True] * len(leaves)
        self._nonnegative = [fact and leaf.nonnegative for fact, leaf in zip(known, leaves, strict=True)]
        self.samples += gradient.samples

    def gradient(self) -> FactoredGradient:
        """Return the gradient of all samples that were added."""
        return self.kind.of_checked([self._leaf(number) for number in range(len(self._ends))])

    def _leaf(self, number: int) -> Interval:
        lower, upper = self._ends[number]
        shape, _ = self._form[number]
        start = lower.whole()[: self.samples].reshape(self.samples, *shape)
        end = start if upper is lower else upper.whole()[: self.samples].reshape(self.samples, *shape)
        return Interval.trusted(start, end, nonnegative=self._nonnegative[number])


def _form(leaf: Interval) -> tuple[torch.Size, torch.dtype]:
    return leaf.shape[1:], leaf.dtype


def _intervals(gradient: FactoredGradient) -> list[Interval]:
    return [leaf for leaf in gradient.leaves if isinstance(leaf, Interval)]


class _Written:
    """The tensors that gradients of the same samples have added to stores.

    Args:
        buffers: memory for new stores.
    """

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._stores: dict[Hashable, _Store] = {}
        self._rows: dict[_Store, Hashable] = {}

    def store(self, rows: Tensor, earlier: _Store | None, capacity: int) -> _Store:
        """Add the next samples to a store, unless that has happened, and return it.

        Args:
            rows: of these samples, (samples, ...), alive until all gradients of these samples are added.
            earlier: the store of the samples before; None if there are none.
            capacity: number of samples of a new store.
        """
        place = place_of(rows)  # not that of the matrix, which can be a copy whose memory is used again at once
        rows = rows.reshape(len(rows), -1)
        if earlier is None:
            shared = self._stores.get(place)
            if shared is not None and (shared.count, shared.capacity) == (len(rows), capacity):
                return shared
            earlier = _store_of(rows, capacity, self._buffers)
        elif earlier in self._rows:
            if self._rows[earlier] == place:
                return earlier
            earlier = earlier.before(len(rows))  # two tensors that were the same until here
        earlier.append(rows)
        self._rows[earlier] = place
        self._stores.setdefault(place, earlier)
        return earlier


class _Store(ABC):
    """One tensor of a gradient, to which rows are added.

    Args:
        capacity: number of rows that there can be.

    Attributes:
        count: number of rows.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.count = capacity, 0

    def append(self, rows: Tensor) -> None:
        """Add rows, (samples, p)."""
        self._write(rows)
        self.count += len(rows)

    @abstractmethod
    def _write(self, rows: Tensor) -> None: ...

    @abstractmethod
    def before(self, rows: int) -> _Store:
        """Return another store without that many rows at the end."""

    @abstractmethod
    def whole(self) -> Tensor:
        """Return all rows, (count, p)."""


def _store_of(rows: Tensor, capacity: int, buffers: Buffers) -> _Store:
    """Return an empty store for rows like these; what is part of a tensor that holds all of them is not copied."""
    holds_all = rows.untyped_storage().nbytes() >= capacity * rows[0].numel() * rows.element_size()
    return _Pieces(capacity) if holds_all else _Columns(buffers.take(rows, (rows.shape[1], capacity)), buffers)


class _Columns(_Store):
    """A tensor with the samples along its last axis.

    Args:
        columns: the tensor, (p, capacity).
        buffers: memory for others.
    """

    def __init__(self, columns: Tensor, buffers: Buffers) -> None:
        super().__init__(columns.shape[1])
        self._columns, self._buffers = columns, buffers

    @override
    def _write(self, rows: Tensor) -> None:
        write_transposed(rows, self._columns[:, self.count : self.count + len(rows)])

    @override
    def before(self, rows: int) -> _Store:
        other = _Columns(self._buffers.take(self._columns, tuple(self._columns.shape)), self._buffers)
        other.count = self.count - rows
        other._columns[:, : other.count] = self._columns[:, : other.count]
        return other

    @override
    def whole(self) -> Tensor:
        return self._columns[:, : self.count].T


class _Pieces(_Store):
    """Rows of one tensor."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._pieces: tuple[Tensor, ...] = ()

    @override
    def _write(self, rows: Tensor) -> None:
        self._pieces = (*self._pieces, rows)

    @override
    def before(self, rows: int) -> _Store:
        other = _Pieces(self.capacity)
        other._pieces, other.count = self._pieces[:-1], self.count - rows
        return other

    @override
    def whole(self) -> Tensor:
        first = self._pieces[0]
        ends = [piece.storage_offset() + len(piece) * piece.stride(0) for piece in self._pieces]
        starts = [piece.storage_offset() for piece in self._pieces]
        common = {(piece.untyped_storage().data_ptr(), piece.stride()) for piece in self._pieces}
        if len(common) == 1 and starts[1:] == ends[:-1]:
            return first.as_strided((self.count, first.shape[1]), first.stride())
        return torch.cat(self._pieces)
