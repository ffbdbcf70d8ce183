"""Errors of one process, raised in all others as well: what stops one stops all, with one message."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from agt_lightning.errors import AgtError, UncertifiableError


class ProcessError(AgtError):
    """Another process failed with an error that did not come from this package; the message quotes it."""


def encode_error(error: Exception | None) -> str:
    r"""Return an error as text; an empty text if there is none.

    Example:
        >>> decode_error([encode_error(None), encode_error(UncertifiableError(["`x` is odd. Remove it."]))])
        UncertifiableError('This training cannot be certified:\n  1. `x` is odd. Remove it.')
    """
    if error is None:
        return ""
    problems = list(error.problems) if isinstance(error, UncertifiableError) else []
    return json.dumps({"kind": type(error).__name__, "message": str(error), "problems": problems})


def decode_error(texts: Sequence[str]) -> Exception | None:
    """Return the error that all processes raise; None if no process failed.

    Args:
        texts: what `encode_error` returned in each process, by rank.
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
