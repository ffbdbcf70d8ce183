"""Errors of one process, told to the others: what stops one stops all, with one message."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from agt_lightning.errors import AgtError, UncertifiableError


class ProcessError(AgtError):
    """Another process stopped for a reason outside this package. Look at the message, which names it."""


def encode_error(error: Exception | None) -> str:
    r"""An error as text; empty for none.

    Example:
        >>> heard([told(None), told(UncertifiableError(["`x` is odd. Remove it."]))])
        UncertifiableError('This training cannot be certified:\n  1. `x` is odd. Remove it.')
    """
    if error is None:
        return ""
    problems = list(error.problems) if isinstance(error, UncertifiableError) else []
    return json.dumps({"kind": type(error).__name__, "message": str(error), "problems": problems})


def decode_error(texts: Sequence[str]) -> Exception | None:
    """The error that all processes raise together; None if none was told.

    Args:
        texts: what each process told, by rank.
    """
    errors = [(rank, json.loads(text)) for rank, text in enumerate(texts) if text]
    if not errors:
        return None
    rank, first = errors[0]
    if first["problems"]:
        return UncertifiableError(list(dict.fromkeys(p for _, error in errors for p in error["problems"])))
    for kind in _kinds(AgtError):
        if kind.__name__ == first["kind"]:
            return kind(first["message"])
    return ProcessError(f"Process {rank} of {len(texts)} stopped: {first['kind']}: {first['message']}")


def _kinds(kind: type[AgtError]) -> Iterator[type[AgtError]]:
    yield kind
    for special in kind.__subclasses__():
        yield from _kinds(special)
