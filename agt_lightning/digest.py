"""Digests of parameters, by which bounds are tied to the weights they were computed for."""

from __future__ import annotations

from collections.abc import Iterable
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
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())
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
