"""What ties the bounds of a checkpoint to the parameters they were computed for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import torch
from torch import nn

from agt_lightning.errors import BoundsMismatchError


def parameters_digest(module: nn.Module) -> str:
    """A text that tells parameters apart: names, types, shapes and every bit, wherever they are stored.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> parameters_digest(layer) == parameters_digest(layer), len(parameters_digest(layer))
        (True, 32)
    """
    digest = blake2b(digest_size=16)
    for name, parameter in module.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        values = parameter.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def require_parameters(module: nn.Module, digest: str) -> None:
    """Raise unless the module has the parameters that a checkpoint's bounds were computed for.

    Raises:
        BoundsMismatchError: if they differ in any bit.
    """
    if parameters_digest(module) != digest:
        raise BoundsMismatchError(
            "Expected the parameters that the checkpoint's bounds were computed for, but those of the module differ, "
            "by their values or by a cast to another type. Resume with the checkpoint's own parameters and precision."
        )


@contextmanager
def complete(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Read the state of a checkpoint; whatever is missing or of another form has a message.

    Raises:
        BoundsMismatchError: if the block stumbles over the form of the state.
    """
    try:
        yield state
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise BoundsMismatchError(
            "Expected the complete bounds of a certified training in the checkpoint, but they are incomplete or of "
            f"another form: {error!r}. Resume from a checkpoint that this version of `CertifiedTraining` wrote."
        ) from error
