"""Digests: of parameters, by which bounds are tied to their weights, and of saved states, by which damage is found."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from hashlib import blake2b

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


def _bits(tensor: Tensor) -> bytes:
    """Return the bits of all elements in their order."""
    values = tensor.detach().cpu().reshape(-1)
    # A single element can have any stride and count as contiguous.
    values = values if values.stride() == (1,) else values.clone(memory_format=torch.contiguous_format)
    return values.view(torch.uint8).numpy().tobytes()


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
