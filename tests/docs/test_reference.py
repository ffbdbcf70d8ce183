"""Public names have an example and a place in the reference; links lead somewhere; and the checks of the site check."""

import re
import zlib
from collections import Counter
from importlib import import_module

import pytest

import agt_lightning
from docs.build import broken_links, missing_names, public_names
from tests.docs.pages import DOCS, ROOT

WITH_EXAMPLES = (
    "agt_lightning",
    "agt_lightning.adversaries",
    "agt_lightning.certificates",
    "agt_lightning.domains.edits",
    "agt_lightning.engine",
    "agt_lightning.lightning",
    "agt_lightning.metrics",
    "agt_lightning.metrics.functional",
    "agt_lightning.optimizers",
    "agt_lightning.rules",
)
"""Packages for those who use this one; the others are for those who work on it."""

TABLES = {"OPTIMIZERS", "RULES", "RuleTable", "Value"}
"""Names of values, which cannot have an example of their own."""


@pytest.mark.thinned(1)
@pytest.mark.parametrize("package", WITH_EXAMPLES)
def test_each_public_name_has_an_example(package):
    module = import_module(package)
    documented = {name: getattr(module, name).__doc__ or "" for name in module.__all__ if name not in TABLES}
    assert [name for name, text in documented.items() if ">>> " not in text] == []


def test_the_reference_lists_the_names_of_the_first_script():
    page = (DOCS / "reference" / "api" / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"\{py:obj\}`(\w+) <([\w.]+)>`", page)
    assert sorted(name for name, _ in listed) == sorted(agt_lightning.__all__)
    for name, target in listed:
        home, _, last = target.rpartition(".")
        assert getattr(import_module(home), last) is getattr(agt_lightning, name)


def test_the_reference_shows_each_package_with_public_names():
    pages = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference" / "api").glob("*.md"))
    shown = set(re.findall(r"\.\. automodule:: ([\w.]+)", pages))
    assert {name.rpartition(".")[0] for name in public_names()} <= shown


def _anchors(text):
    """Anchors of the headings of a page, as code hosts make them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    anchors, seen = set(), Counter()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


def _dead_links(page):
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE) if page.suffix == ".md" else text
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#:\s]*)(?:#([^)\s\\]*))?\)", text):
        target = page.parent / path if path else page
        if not target.exists():
            yield f"{page.relative_to(ROOT)}: no file {path}"
        elif anchor and target.suffix == ".md" and anchor not in _anchors(target.read_text(encoding="utf-8")):
            yield f"{page.relative_to(ROOT)}: no heading {path}#{anchor}"


def test_every_link_leads_to_a_file_and_a_heading():
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *DOCS.glob("notebooks/*.ipynb")]
    assert len(pages) > 70
    assert [link for page in sorted(pages) for link in _dead_links(page)] == []


def test_dead_links_of_a_page_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.docs.test_reference.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# A: `b`\n[1](#a-b) [2](page.md#a) [3](gone.md) [4](#c)\n```\n# c\n[5](gone.md)\n```\n")
    assert list(_dead_links(page)) == [
        "page.md: no heading page.md#a",
        "page.md: no file gone.md",
        "page.md: no heading #c",
    ]


def test_broken_links_of_a_site_are_found(tmp_path):
    (tmp_path / "one.html").write_text('<a href="two.html#there"></a><a href="two.html#gone"></a><img src="no.png">')
    (tmp_path / "two.html").write_text('<p id="there"></p><a href="https://example.org/x"></a><a href="#gone"></a>')
    assert list(broken_links(tmp_path)) == [
        "one.html: no anchor for two.html#gone",
        "one.html: no file for no.png",
        "two.html: no anchor for #gone",
    ]


def test_names_that_the_site_lacks_are_found(tmp_path):
    head = b"# Sphinx inventory version 2\n# Project: x\n# Version: 1\n# The remainder is compressed using zlib.\n"
    names = {*public_names(), *(f"agt_lightning.somewhere.{name}" for name in agt_lightning.__all__)}
    left_out = {"agt_lightning.rules.Rule", "agt_lightning.somewhere.Interval"}
    lines = "".join(f"{name} py:class 1 page.html#$ -\n" for name in names - left_out)
    (tmp_path / "objects.inv").write_bytes(head + zlib.compress(lines.encode()))
    expected = ["agt_lightning.rules.Rule", "Interval"]
    assert list(missing_names(tmp_path)) == [f"no entry in the reference for {name}" for name in expected]
