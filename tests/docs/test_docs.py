"""The documents say what the code does: their code runs, and the table of operations is the table of rules."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_python(code):
    """In a process of its own, since rules that are registered stay registered."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_table_of_operations_is_up_to_date():
    printed = run_python("from docs.support_table import document; import sys; sys.stdout.write(document())")
    assert printed.returncode == 0, printed.stderr
    committed = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    assert printed.stdout == committed, "Expected the table of the rules; run `python docs/support_table.py`."


def test_example_of_a_rule_obeys_the_laws():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "rules.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    result = run_python("\n".join(blocks))
    assert result.returncode == 0, result.stderr


def test_example_with_a_wrong_turn_breaks_the_laws():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "rules.md").read_text(encoding="utf-8"), re.DOTALL)
    result = run_python("\n".join(blocks).replace("[(0.0, 1.0)]", "[(0.0, 0.5)]"))
    assert "leaves its bounds" in result.stderr


def test_a_diagnosis_prints_what_the_document_shows(tmp_path):
    """Numbers apart: other processors round otherwise."""
    text = (ROOT / "docs" / "diagnose.md").read_text(encoding="utf-8")
    script = tmp_path / "net.py"
    script.write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
    result = run_python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
    assert result.returncode == 0, result.stderr
    shown = "".join(re.findall(r"```text\n(.*?)```", text, re.DOTALL))
    assert _without_numbers(result.stdout) == _without_numbers(shown)


def _without_numbers(text):
    """Words of each line; digits, and the line numbers of the joined blocks, are left out."""
    return [re.sub(r"[\d.e+-]+", "#", line).split() for line in text.splitlines()]
