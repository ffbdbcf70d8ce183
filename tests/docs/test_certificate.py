"""The page on certificates names every entry and every digest of the schema."""

import re
from pathlib import Path

from agt_lightning.certificates.document import canonical_digest
from agt_lightning.certificates.schema import schema

PAGE = (Path(__file__).parents[2] / "docs" / "certificate.md").read_text(encoding="utf-8")


def test_every_entry_is_explained():
    words = set(re.findall(r"[\w$]+", " ".join(re.findall(r"`([^`]+)`", PAGE))))
    definitions = schema()["$defs"]
    entries = {*definitions["certificate"]["properties"], *definitions["certificates"]["properties"]} - {"certificates"}
    digests = definitions["certificate"]["properties"]["digests"]["properties"]
    assert entries | set(digests) <= words, (entries | set(digests)) - words


def test_the_digest_of_content_is_the_one_that_is_described():
    assert 'sort_keys=True, separators=(",", ":")' in PAGE.replace("\n", " ")
    assert canonical_digest({"sha256_of_content": "any"}) == canonical_digest({})
