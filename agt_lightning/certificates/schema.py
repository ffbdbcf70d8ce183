"""The JSON Schema of certificates, and where a certificate leaves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from agt_lightning.certificates.document import MalformedCertificateError
from agt_lightning.certificates.record import ONE, SEVERAL, VERSION

_FILE = f"certificate-{VERSION}.schema.json"

_MOST = 5
"""Problems that are listed; one slip can cause hundreds."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of `certificate.json`.

    Example:
        >>> schema()["$id"]
        'urn:agt-lightning:certificate:2'
    """
    found: dict[str, Any] = json.loads(files("agt_lightning.certificates").joinpath(_FILE).read_text("utf-8"))
    return found


def require_known_format(record: Mapping[str, Any]) -> None:
    """Raise unless a record says that it is a certificate of this version.

    Raises:
        MalformedCertificateError: with what reads it, if something does.
    """
    stated = record.get("format")
    version = record.get("schema_version")
    if stated in ("agt_lightning certificate 1", "agt_lightning certificates 1"):
        raise MalformedCertificateError(
            "Expected a certificate with digests, but this one is of version 1, which had none. It can be read, not "
            "verified: train again."
        )
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise MalformedCertificateError(
            f"Expected a certificate of version {VERSION}, but this one is of version {version}. Use a later version "
            "of agt_lightning."
        )
    if stated not in (ONE, SEVERAL) or version != VERSION:
        raise MalformedCertificateError(
            f"Expected a file that `CertifiedTraining` wrote, of format {ONE!r} and schema version {VERSION}, but got "
            f"{stated!r} and {version!r}."
        )


def schema_problems(record: Mapping[str, Any]) -> list[str]:
    """Return where a certificate leaves its schema, each place with what is wrong.

    Args:
        record: of a known format.
    """
    errors = sorted(_validator().iter_errors(record), key=lambda error: error.json_path)
    problems = [f"`{error.json_path}`: {_in_short(error.message)}" for error in errors]
    more = len(problems) - _MOST
    return problems[:_MOST] + ([f"{more} more places"] if more > 0 else [])


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator  # takes a tenth of a second, and only a verification needs it

    return Draft202012Validator(schema())


def _in_short(message: str) -> str:
    return message if len(message) <= 200 else f"{message[:120]} ... {message[-70:]}"
