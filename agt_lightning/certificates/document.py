"""The text of a certificate: written atomically, read strictly, with a digest of all that it says."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import torch

from agt_lightning.bounds import atomic_path
from agt_lightning.errors import AgtError

DIGEST = "sha256_of_content"
"""Key of the digest of all other entries."""

_LARGEST = 64 * 2**20
"""Bytes; certificates take kilobytes."""


class MalformedCertificateError(AgtError):
    """A file is no certificate that this version can read; the message says what is wrong with it."""


def with_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a certificate, ready for JSON, with the digest of what it says.

    Infinities become the strings "inf" and "-inf", tensors nested lists. White space and the order of keys do not
    count.

    Example:
        >>> with_digest({"steps": 3}) == with_digest(with_digest({"steps": 3}))
        True
    """
    entries = {str(key): plain(item) for key, item in record.items() if key != DIGEST}
    return {**entries, DIGEST: canonical_digest(entries)}


def canonical_digest(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a certificate without its own digest, in hexadecimal.

    Raises:
        MalformedCertificateError: if it has values that JSON has not.
    """
    entries = {key: item for key, item in record.items() if key != DIGEST}
    try:
        text = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise MalformedCertificateError(f"Expected values that JSON has, but got others: {error}.") from error
    return sha256(text.encode("ascii")).hexdigest()


def write_certificate(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write a certificate with its digest as JSON, completely or not at all.

    Args:
        path: the file; missing folders are made.
        record: from `certificate` or `certificates`.
    """
    text = json.dumps(with_digest(record), indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_certificate(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the JSON of a certificate; what no certificate has is refused, not repaired.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        MalformedCertificateError: if it is not UTF-8 without a byte order mark, not JSON, not an object, or has
            repeated keys, NaN, infinities, integers of more than 64 bits or numbers beyond the range of float64.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a certificate, but there is no file {path}.")
    return parsed(Path(path).read_bytes())


def parsed(content: bytes) -> dict[str, Any]:
    """Return what the bytes of a certificate say; see `read_certificate`.

    Raises:
        MalformedCertificateError: saying what is wrong.

    Example:
        >>> parsed(b'{"steps": 3}')
        {'steps': 3}
    """
    try:
        found = json.loads(
            _text(content),
            object_pairs_hook=_without_repeats,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_of_64_bits,
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise MalformedCertificateError(
            f"Expected JSON, but it is cut off or damaged at {where}: {error.msg}."
        ) from None
    except RecursionError:
        raise MalformedCertificateError("Expected a few levels of nesting, but there are thousands.") from None
    except ValueError as error:  # an integer of thousands of digits
        raise MalformedCertificateError(f"Expected numbers that can be read, but got others: {error}") from None
    if not isinstance(found, dict):
        raise MalformedCertificateError(f"Expected an object of JSON, but got {type(found).__name__}.")
    return found


def _text(content: bytes) -> str:
    if len(content) > _LARGEST:
        raise MalformedCertificateError(f"Expected at most {_LARGEST} bytes, but got {len(content)}.")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:4]:
        raise MalformedCertificateError("Expected UTF-8, but the text is in UTF-16 or UTF-32, or no text.")
    if content.startswith(b"\xef\xbb\xbf"):
        raise MalformedCertificateError("Expected UTF-8 without a byte order mark, but there is one. Remove it.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedCertificateError(
            f"Expected UTF-8, but byte {error.start} belongs to another encoding."
        ) from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise MalformedCertificateError(f"Expected each key once in an object, but {repeated!r} is there twice.")
    return found


def _no_constant(name: str) -> NoReturn:
    raise MalformedCertificateError(f"Expected numbers, but got {name}, which JSON does not have.")


def _of_64_bits(digits: str) -> int:
    number = int(digits)
    if abs(number) >= 2**64:
        raise MalformedCertificateError(f"Expected integers of at most 64 bits, but got {digits[:30]}.")
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise MalformedCertificateError(f"Expected numbers within the range of float64, but got {digits}.")
    return number


def plain(value: object) -> object:
    """Return a value as JSON has it: tensors as lists, infinities as strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
