"""The documents say what the code does: their code runs, and the table of operations is the table of rules."""

import re
import runpy
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest
import torch

from agt_lightning import rules
from docs.support_table import document

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(autouse=True)
def _no_trace():
    """Start without the rule that the doctest of `register_rule` adds; end with rules and random numbers as before."""
    table = rules._rules
    before = dict(table)
    table.pop(torch.ops.aten.exp2.default, None)
    with torch.random.fork_rng():
        yield
    table.clear()
    table.update(before)


def blocks(name, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)


def run_script(path, code):
    path.write_text(code, encoding="utf-8")
    runpy.run_path(str(path), run_name="__main__")


def test_table_of_operations_is_up_to_date():
    committed = (DOCS / "support.md").read_text(encoding="utf-8")
    assert document() == committed, "Expected the table of the rules; run `python docs/support_table.py`."


def test_example_of_a_rule_obeys_the_laws(tmp_path):
    assert len(blocks("rules.md")) == 2
    run_script(tmp_path / "bump.py", "\n".join(blocks("rules.md")))
    assert torch.ops.example.bump.default in rules.RULES


def test_example_with_a_wrong_turn_breaks_the_laws(tmp_path):
    code = "\n".join(blocks("rules.md")).replace("[(0.0, 1.0)]", "[(0.0, 0.5)]")
    with pytest.raises(AssertionError, match="leaves its bounds"):
        run_script(tmp_path / "bump.py", code)


def test_a_diagnosis_prints_what_the_document_shows(tmp_path, capsys):
    """Numbers apart: other processors round otherwise."""
    run_script(tmp_path / "net.py", "\n".join(blocks("diagnose.md")))
    shown = "".join(blocks("diagnose.md", "text"))
    assert _without_numbers(capsys.readouterr().out) == _without_numbers(shown)


def test_every_home_of_a_statement_exists():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    homes = re.findall(r"`([\w/]+)\.py::([\w.]+)`", text)
    assert homes
    for file, name in homes:
        attrgetter(name)(import_module(f"agt_lightning.{file.replace('/', '.')}"))


@pytest.mark.parametrize("name", ["README.md", *(str(path.relative_to(ROOT)) for path in sorted(DOCS.rglob("*.md")))])
def test_every_link_leads_to_a_file(name):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


def _without_numbers(text):
    """Words of each line; digits, and the line numbers of the joined blocks, are left out."""
    return [re.sub(r"[\d.e+-]+", "#", line).split() for line in text.splitlines()]
