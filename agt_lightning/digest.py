"""Digests: of parameters, by which bounds are tied to their weights, and of saved states, by which damage is found.

Those that a certificate states are SHA-256: `content_digest` and `RowsDigest` of values, whatever file they are in, and
`file_digest` of files. docs/certificate.md writes out what enters them.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b, sha256
from hashlib import file_digest as hash_of_file
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor


def tensors_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return a digest of names, types, shapes and bits of tensors, the same on every device.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> len(tensors_digest(layer.named_parameters()))
        32
        >>> tensors_digest(layer.named_parameters()) == tensors_digest(layer.double().named_parameters())
        False
    """
    digest = blake2b(digest_size=16)
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bits(tensor))
    return digest.hexdigest()


def values_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return a digest of names, shapes and values of parameters; a cast to a wider type does not change it.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> before = values_digest(layer.named_parameters())
        >>> values_digest(layer.double().named_parameters()) == before
        True
    """
    return tensors_digest((name, tensor.detach().double() + 0.0) for name, tensor in named)  # -0.0 + 0.0 is 0.0


def _bits(tensor: Tensor) -> memoryview:
    """Return the bits of all elements in their order, without a copy if they lie so in memory."""
    values = tensor.detach().cpu().reshape(-1)
    # A single element can have any stride and count as contiguous.
    values = values if values.stride() == (1,) else values.clone(memory_format=torch.contiguous_format)
    return values.view(torch.uint8).numpy().data


def state_digest(state: object) -> str:
    """Return a digest of a saved state: tensors, numbers, strings, bytes, None, and lists and dictionaries of these.

    It is the same on every device, in every order of dictionaries, and for lists and tuples of equal entries. All else
    counts: names, types, shapes and every bit of every value.

    Raises:
        TypeError: if the state has a value of another type.

    Example:
        >>> state_digest({"a": 1, "b": [torch.zeros(2)]}) == state_digest({"b": (torch.zeros(2),), "a": 1})
        True
        >>> state_digest({"a": 1}) == state_digest({"a": 1.0})
        False
    """
    return _digest_of(state).hex()


def _digest_of(value: object) -> bytes:
    """Return the digest of one value, made of those of its entries."""
    digest = blake2b(digest_size=16)
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(_bits(value))
    elif isinstance(value, Mapping):
        digest.update(b"dictionary ")
        for entry in sorted(_digest_of(key) + _digest_of(item) for key, item in value.items()):
            digest.update(entry)
    elif isinstance(value, list | tuple):
        digest.update(b"list ")
        for item in value:
            digest.update(_digest_of(item))
    else:
        digest.update(_plain_bytes(value))
    return digest.digest()


def _plain_bytes(value: object) -> bytes:
    """Return type and content of a value that has no entries."""
    if value is None or isinstance(value, bool | int):
        return f"{type(value).__name__} {value}".encode()
    if isinstance(value, float):
        return b"float " + struct.pack("<d", value)
    if isinstance(value, str):
        return b"str " + value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return b"bytes " + value
    raise TypeError(
        f"Expected tensors, numbers, strings, bytes, None, lists and dictionaries in a state that is saved, but got "
        f"{type(value).__name__}."
    )


# --- SHA-256, for certificates -----------------------------------------------------------------------------------


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hash_of_file(file, "sha256").hexdigest()


def content_digest(value: object) -> str:
    """Return the SHA-256 of a value and all that it contains, in hexadecimal, the same on every device.

    Tensors count by type, shape and bits; mappings by their items in any order, dataclasses as mappings of their
    fields; lists and tuples by their entries in order. Of objects of other types, only the name of the type counts.

    Example:
        >>> content_digest({"a": torch.zeros(2), "b": 1}) == content_digest({"b": 1, "a": torch.zeros(2)})
        True
        >>> content_digest(torch.zeros(2)) == content_digest(torch.zeros(2, 1))
        False
    """
    return _content(value).hex()


def _content(value: Any) -> bytes:
    digest = sha256()
    if isinstance(value, numpy.ndarray | numpy.generic) and value.dtype.kind in "biufc":
        value = torch.as_tensor(numpy.asarray(value))
    if isinstance(value, Tensor):
        dense = _dense(value)
        digest.update(f"tensor {_form(dense)} ".encode())
        digest.update(_bits(dense))
    elif (items := _items_of(value)) is not None:
        digest.update(b"mapping ")
        for entry in sorted(_content(key) + _content(item) for key, item in items):
            digest.update(entry)
    elif isinstance(value, list | tuple):
        digest.update(b"list ")
        for item in value:
            digest.update(_content(item))
    else:
        try:
            digest.update(_plain_bytes(value))
        except TypeError:
            digest.update(f"object {type(value).__module__}.{type(value).__qualname__}".encode())
    return digest.digest()


def _items_of(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Return the items of a mapping, or the fields of a dataclass with their names; None for other values."""
    if isinstance(value, Mapping):
        return value.items()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def _dense(tensor: Tensor) -> Tensor:
    """Return a tensor with its elements in memory, one after the other."""
    values = tensor.detach().cpu().resolve_conj().resolve_neg()
    return values if values.layout is torch.strided else values.to_dense()


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


class RowsDigest:
    """The SHA-256 of a data set that comes in batches, the same for batches of any size.

    Each tensor of a batch with a row per sample is read as one tensor over all batches, in their order. What has no row
    per sample counts once a batch.

    Example:
        >>> x, y = torch.arange(4.0), torch.arange(4)
        >>> whole, parts = RowsDigest(), RowsDigest()
        >>> whole.update((x, y), 4)
        >>> for rows in (slice(0, 3), slice(3, 4)):
        ...     parts.update((x[rows], y[rows]), len(x[rows]))
        >>> whole.hexdigest() == parts.hexdigest(), parts.samples
        (True, 4)
    """

    def __init__(self) -> None:
        self.samples = 0
        self._rows: dict[str, Any] = {}  # running digests of the entries with a row per sample, by place and form
        self._shared: dict[str, Any] = {}  # of all others

    def update(self, batch: object, size: int) -> None:
        """Add a batch.

        Args:
            batch: tensors in containers.
            size: its number of samples.
        """
        self.samples += size
        for place, leaf in _leaves(batch):
            if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size:
                rows = _dense(leaf)
                form = f"{place} {str(rows.dtype).removeprefix('torch.')} {tuple(rows.shape[1:])}"
                self._rows.setdefault(form, sha256()).update(_bits(rows))
            else:
                self._shared.setdefault(place, sha256()).update(_content(leaf))

    def hexdigest(self) -> str:
        """Return the digest of all batches so far."""
        rows = {form: digest.hexdigest() for form, digest in self._rows.items()}
        shared = {place: digest.hexdigest() for place, digest in self._shared.items()}
        return content_digest({"samples": self.samples, "rows": rows, "shared": shared})


def _leaves(value: Any, place: str = "batch") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested containers with their places, such as ``batch['x'][0]``."""
    if isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _leaves(item, f"{place}[{position}]")
    elif (items := _items_of(value)) is not None:
        for key, item in items:
            yield from _leaves(item, f"{place}[{key!r}]")
    else:
        yield place, value
