"""The text of a certificate; tests/command/test_verify.py has what is malformed."""

import json
import math

import pytest
import torch

from agt_lightning.certificates.document import (
    DIGEST,
    MalformedCertificateError,
    canonical_digest,
    parsed,
    read_certificate,
    with_digest,
    write_certificate,
)

RECORD = {"n": 3, "epsilon": torch.tensor([0.5, math.inf]), "results": {"mean_width": 1e-05, "ä": [True, None]}}


def test_what_is_written_is_read(tmp_path):
    write_certificate(tmp_path / "new" / "certificate.json", RECORD)
    record = read_certificate(tmp_path / "new" / "certificate.json")
    assert record["epsilon"] == [0.5, "inf"]
    assert record[DIGEST] == canonical_digest(record)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["certificate.json"]


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "certificate.json"
    write_certificate(path, RECORD)
    before = path.read_text()
    with pytest.raises((MalformedCertificateError, TypeError)):
        write_certificate(path, {"n": object()})
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["certificate.json"]


def test_the_digest_is_of_what_is_said_and_not_of_how():
    record = with_digest(RECORD)
    digest = record[DIGEST]
    for text in (json.dumps(record), json.dumps(record, indent=7, sort_keys=True, ensure_ascii=False)):
        assert canonical_digest(parsed(text.encode())) == digest
    for changed in ({"n": 4}, {"n": 3.0}, {"n": True}, {"results": {}}, {"more": None}):
        assert canonical_digest({**record, **changed}) != digest
    assert canonical_digest({key: item for key, item in record.items() if key != "n"}) != digest


def test_the_digest_is_that_of_the_document_that_docs_describe():
    """SHA-256 of the ASCII text with sorted keys and no white space: what another implementation computes."""
    assert canonical_digest({"b": [1.5, "é"], "a": None}) == (
        "4f88a8a6862b85dbcd4bff8f7eebddca4eedba17dcf8931a9a182a9a381175e1"
    )
