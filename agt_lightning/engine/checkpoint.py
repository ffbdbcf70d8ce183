"""Checks that the bounds of a checkpoint are complete and belong to the module's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from agt_lightning.digest import tensors_digest
from agt_lightning.errors import BoundsMismatchError


def require_parameters(module: nn.Module, digest: str) -> None:
    """Raise unless the module has the parameters that a checkpoint's bounds were computed for.

    Args:
        module: with the resumed parameters.
        digest: `tensors_digest` of the parameters at the checkpoint.

    Raises:
        BoundsMismatchError: if they differ in any bit.
    """
    if tensors_digest(module.named_parameters()) != digest:
        raise BoundsMismatchError(
            "Expected the parameters that the checkpoint's bounds were computed for, but those of the module differ, "
            "by their values or by a cast to another type. Resume with the checkpoint's own parameters and precision."
        )


@contextmanager
def complete(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Raise a `BoundsMismatchError` if the block that reads a checkpoint's state fails at a missing or malformed entry.

    Args:
        state: of the checkpoint.

    Yields:
        The same state.

    Raises:
        BoundsMismatchError: with the way out.
    """
    try:
        yield state
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise BoundsMismatchError(
            "Expected the complete bounds of a certified training in the checkpoint, but they are incomplete or of "
            f"another form: {error!r}. Resume from a checkpoint that this version of `CertifiedTraining` wrote."
        ) from error
