"""`agt statement`: a certificate as signing tools take it."""

import json

from agt_lightning.certificates.document import canonical_digest
from agt_lightning.digest import file_digest


def test_subjects_are_the_files_of_the_certificate(agt, trained):
    code, printed = agt("statement", *trained.arguments())
    statement = json.loads(printed)
    assert code == 0
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "urn:agt-lightning:certificate:2"
    assert statement["subject"] == [
        {"name": path.name, "digest": {"sha256": file_digest(path)}} for path in (trained.bounds, trained.weights)
    ]
    assert canonical_digest(statement["predicate"]) == statement["predicate"]["sha256_of_content"]


def test_other_files_have_no_statement(agt, files):
    files.bounds.write_bytes(files.bounds.read_bytes() + b" ")
    code, printed = agt("statement", *files.arguments())
    assert code == 1
    assert "_type" not in printed
